"""Workloads of `fp8np study`: real pretrained models on real data, one module each, which ``studies/paper.toml`` names.

A module offers the network with its weights (`network`, which alone needs PyTorch), batches with what the model should say
(`data`, `calibration`, ...), and what turns outputs into a figure where the default does not (`units`, a metric). Each of these
takes `folders`: where weights and data are, by name. Everything is read in one order, and noise comes from fixed seeds.
"""
