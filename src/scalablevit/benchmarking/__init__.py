"""What models cost: parameters, arithmetic, time and memory."""
