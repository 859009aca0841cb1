"""What is measured of gradients, BatchNorm and updates, on the device, without stopping it."""
