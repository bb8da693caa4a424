"""The vocabulary: frozen dataclasses that every other package speaks. No I/O, no framework, no declaration of a particular feature."""
