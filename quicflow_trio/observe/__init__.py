"""What a running program shows of itself: log text that cannot be forged, values that can be watched."""
