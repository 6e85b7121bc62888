"""Labelled tasks that are read while a network is pretrained: probe, nearest neighbours and the floor, on dev."""
