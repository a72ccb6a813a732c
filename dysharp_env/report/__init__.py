"""What people look at: results as records, tables and text, timelines, pictures, and the files they go to."""

STAGE_NAMES = {
    **{"dispatch": "dispatch", "gemm1": "GEMM-1", "gemm2": "GEMM-2", "combine": "combine"},
    # Of copies made in the layer: together, and of each matrix.
    **{"weights": "weights", "weights1": "weights of GEMM-1", "weights2": "weights of GEMM-2"},
}
RESOURCE_NAMES = {"uplink": "uplinks", "downlink": "downlinks", "sm": "SMs", "hbm": "HBM"}
