//! This process among the ranks of a run.

use std::rc::Rc;
use std::time::Duration;

use ::ranks::{JoinOptions, Place, Processes, join};
use anyhow::Result;
use base::console;
use cli::{launch, program};
use config::RanksSection;
use tch::Device;
use torch::ranks::Transport;
use train::{Ranks, TrainError, device_of};

/// The ranks of a run, as this process has them.
pub struct Joined {
    /// What works together.
    pub ranks: Ranks,
    /// The device of this rank.
    pub device: String,
    /// How many ranks this machine has.
    pub local_size: usize,
    processes: Rc<Processes>,
}

/// Joins the ranks that a launcher started with this one; alone without a launcher.
///
/// # Errors
/// Variables of the launcher that do not fit, and ranks that do not come.
pub fn joined(section: &RanksSection, device: &str, num_threads: Option<usize>) -> Result<Joined> {
    let place = Place::from_env()?;
    if place.size > 1 {
        console::speak_as(place.rank);
        // Groups with operations under way would hold up an ordinary end.
        program::leave_by(torch::ranks::leave);
        if num_threads.is_none() {
            // torchrun sets one thread for all that reads its variable.
            let cores = std::thread::available_parallelism()?.get();
            tch::set_num_threads((cores / place.local_size).max(1) as i32);
        }
    }
    let device = device_of(device, place.size, place.local_rank)?;
    let transport = match torch::parse_device(&device)? {
        Device::Cuda(card) => Transport::Nccl { card },
        _ => Transport::Gloo,
    };
    let limit = Duration::from_secs(section.ddp_timeout as u64);
    let options = JoinOptions { limit, checks: section.check_collectives, transport };
    let joined = join(&place, &options)?;
    let processes = Rc::new(joined.world);
    let threads = num_threads.unwrap_or_else(|| tch::get_num_threads().max(0) as usize);
    // Of the process; what is of the run, the trainers compare.
    processes.agree(&[("program", launch::build()), ("threads", threads.to_string())])?;
    let ranks = Ranks {
        world: processes.clone(),
        tensors: Rc::new(joined.tensors),
        local_rank: place.local_rank,
    };
    Ok(Joined { ranks, device, local_size: place.local_size, processes })
}

impl Joined {
    /// Runs `work` as one of the ranks, which end together: where it fails here, the others are told.
    ///
    /// # Errors
    /// Those of `work`, and of other ranks.
    pub fn run<T>(self, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        let result = work(&self).and_then(|result| {
            self.processes.finish()?;
            Ok(result)
        });
        result.map_err(|error| {
            let error = self.explained(error);
            if !self.knows(&error) {
                self.ranks.world.fail(&program::message(&error));
            }
            // Dropped, they would wait for what is under way.
            std::mem::forget(self.ranks.clone());
            error
        })
    }

    /// Work that the first rank of each machine does before the others, such as a download that they then find.
    ///
    /// # Errors
    /// Those of `work`, and of other ranks.
    pub fn first_of_machine_first<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        let first = (self.ranks.local_rank == 0).then(&work).transpose()?;
        self.ranks.world.barrier("the model is there")?;
        first.map_or_else(&work, Ok)
    }

    /// What breaks between ranks is about another rank.
    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast_ref::<TrainError>() {
            Some(TrainError::Ranks(cause)) => self.processes.explain(cause).into(),
            _ => error,
        }
    }

    /// Whether the others know of an error without being told.
    fn knows(&self, error: &anyhow::Error) -> bool {
        match error.downcast_ref::<TrainError>() {
            Some(error) => error.is_known_to_all(),
            None => error.downcast_ref::<base::world::WorldError>().is_some(),
        }
    }
}
