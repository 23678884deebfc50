//! Codes of the mesh file.

codes! {}
