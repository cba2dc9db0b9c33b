"""Selection of the picture and the sound stream to decode, by packets and flags."""
