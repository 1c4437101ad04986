"""From a data set on disk to a batch on the device."""
