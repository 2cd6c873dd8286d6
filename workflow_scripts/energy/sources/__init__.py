"""Where joules come from: one module per source, all behind the interface in `base`.

    measured    a hardware counter          rapl (CPU packages, DRAM), nvml total energy (GPU), slurm (node)
    integrated  power samples over time     nvml power (GPU)
    modelled    load or time times a model  codecarbon (CPU, RAM)

`replay` plays recorded readings through the same arithmetic. Another kind of accelerator (AMD through amdsmi, say) is a
`GpuReader` as in `nvml`: four readings per device.
"""
