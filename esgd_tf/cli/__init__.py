"""The commands. A command's module imports TensorFlow only after its flags have been checked."""
