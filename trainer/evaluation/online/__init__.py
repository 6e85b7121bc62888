"""Labelled tasks while a network is pretrained: probe, nearest neighbours and floor, on dev."""
