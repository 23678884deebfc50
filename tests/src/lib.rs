//! What the black-box tests share. Every test drives the built binaries in network namespaces of its own.
