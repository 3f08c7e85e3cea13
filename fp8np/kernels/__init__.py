"""Compiled kernels. One family a module, rows in one table (`fp8np.kernels._table`); reached only through `select`."""
