"""The control plane: one qemu-storage-daemon per set, configured over QMP. Asynchronous; moves no data."""
