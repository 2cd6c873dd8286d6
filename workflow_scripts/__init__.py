"""Stages, energy meter and accounting of the Distillation Energy Benchmark."""

__version__ = "0.2.0"
