//! What `launch` takes: how many ranks, and where they meet. Names are those of torchrun.

use crate::ranges::{POSITIVE, demand};
use crate::{ConfigError, Validate, command, section};

section! {
    /// Ranks to start.
    pub struct LaunchSection {
        "launch" {
            /// Ranks on this machine, one for each GPU.
            nproc_per_node: usize = 1,
            /// Machines. Each runs `launch` with the same flags but for `node_rank`.
            nnodes: usize = 1,
            /// Number of this machine, from 0.
            node_rank: usize = 0,
            /// Address of machine 0, where ranks meet; without it, this machine where it is the only one.
            master_addr: Option<String> = None,
            /// A port of machine 0 that is free; without it, any where there is one machine.
            master_port: Option<usize> = None,
            /// Times that all ranks are started anew after a fault; training goes on from its newest checkpoint.
            max_restarts: usize = 0,
        }
    }
}

command! {
    /// Ranks of another command, started on this machine.
    pub struct LaunchConfig {
        launch: LaunchSection,
    }
}

impl Validate for LaunchConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let LaunchSection { nproc_per_node, nnodes, node_rank, master_addr, master_port, .. } =
            &self.launch;
        demand(*nproc_per_node > 0, "nproc_per_node", 0, POSITIVE)?;
        demand(*nnodes > 0, "nnodes", 0, POSITIVE)?;
        demand(node_rank < nnodes, "node_rank", node_rank, "a number from 0 and below `nnodes`")?;
        demand(*master_port != Some(0), "master_port", 0, "a port from 1 to 65535")?;
        let several = *nnodes > 1;
        let expected = "the address of machine 0: there are several";
        demand(!several || master_addr.is_some(), "master_addr", "nothing", expected)?;
        let expected = "a free port of machine 0: there are several machines";
        demand(!several || master_port.is_some(), "master_port", "nothing", expected)
    }
}
