"""The machine: devices, processes, signals, files, seeds. Nothing about detection."""
