"""What students and teachers see of a clip: crops, color, blur, and the log-mel spectrogram."""
