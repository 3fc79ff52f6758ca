"""What methods cost: parameters, multiply-adds, time and memory."""
