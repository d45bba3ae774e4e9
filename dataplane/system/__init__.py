"""What the kernel gives: processes, descriptors, sockets, memory files, the seal and the clock."""
