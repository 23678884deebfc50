//! Codes of the mesh file.

codes! {
    UNREADABLE = "UP-MESH-001" {
        what: "The mesh file cannot be read.",
        cause: "It does not exist, or its permissions do not allow it.",
        next_step: "Check the path given with --mesh-file or LOCAL_XDS_PATH.",
    }
    SHAPE = "UP-MESH-002" {
        what: "The mesh file is not of the right shape.",
        cause: "A typo in a field name, or a value of the wrong type; the message names line and field.",
        next_step: "Correct that line; until then the configuration that was read last stays in force.",
    }
    CONTRADICTION = "UP-MESH-003" {
        what: "The mesh file contradicts itself.",
        cause: "Two entries claim the same, or one refers to another that is missing.",
        next_step: "Correct the entries that the message names; until then the configuration that was read last stays in force.",
    }
}
