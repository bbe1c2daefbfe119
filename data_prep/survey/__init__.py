"""What `sottovoce new` looks at before it writes a recipe: the audio, the machine and the teacher."""
