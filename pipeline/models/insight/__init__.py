"""What `ferry evaluate` is made of: calibration, attacks, mistakes, and the pictures of them."""
