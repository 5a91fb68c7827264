"""The motion model: clips of moving garments, its training and its evaluation."""
