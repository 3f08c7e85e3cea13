"""The cases of `fp8np bench`, and the other measurements that docs/ quotes: installed as `fp8np_benchmarks`."""
