"""Studies: workloads times recipes, each compared with FP32 on the same samples; what ``fp8np study`` runs.

`reading` turns a file into a `Study` (`spec`, `grid`); `runner` hands its cells to processes, each of which is a `worker` that carries
them out (`cell`, `calibration`, with the figures of `statistics`) and keeps them (`store`, under keys of `keys`); `results` reads what
was kept, and `tables`, `plots` and `page` show it.
"""
