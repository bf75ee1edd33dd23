"""Training: an exit's epoch, a round of deltas or of joint steps, the losses and schedules, PyTorch alone."""
