"""Which picture and which sound of a container are decoded, judged by its packets and flags."""
