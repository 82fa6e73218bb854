"""The model's step in C++: kernels.cpp is the mathematics, compiler.py makes it a library, model.py calls it."""
