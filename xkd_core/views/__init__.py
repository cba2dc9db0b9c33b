"""Views of a clip for students and teachers: crops, color, blur, log-mel spectrograms."""
