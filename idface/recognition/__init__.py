"""Face recognisers behind one interface, the alignment they share, and their calibration."""
