"""Stages, energy meter and accounting of the Distillation Energy Benchmark."""
