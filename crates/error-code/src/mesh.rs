//! Codes of the mesh file.

codes! {
    /// The mesh file cannot be read.
    /// Cause: The file does not exist, or its permissions do not allow reading it.
    /// Next step: Check the path given with --mesh-file or LOCAL_XDS_PATH.
    UNREADABLE = "UP-MESH-001";

    /// The mesh file is malformed.
    /// Cause: A typo in a field name, or a value of the wrong type; the message names the line and
    /// the field.
    /// Next step: Correct that line. Until then, the last valid mesh file stays in effect.
    MALFORMED = "UP-MESH-002";

    /// The mesh file contradicts itself.
    /// Cause: Two entries claim the same name or address, or one refers to an entry that does not
    /// exist.
    /// Next step: Correct the entries that the message names. Until then, the last valid mesh file
    /// stays in effect.
    CONTRADICTION = "UP-MESH-003";
}
