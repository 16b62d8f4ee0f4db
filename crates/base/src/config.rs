//! Configuration: one declaration gives the struct, its defaults, its flags and their help.
