//! `launch`: ranks of a command as processes of this machine, where there is no torchrun. It sets torchrun's variables,
//! passes signals on, and ends all ranks when one fails. How ranks meet is theirs.

mod ending;
mod output;
mod rank;

use std::ffi::OsString;
use std::iter;
use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use config::{EvalConfig, GrpoConfig, LaunchConfig, LaunchSection, SftConfig};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;

use crate::arguments::{self, Invocation};
use crate::command::Command;
use crate::program::{Ended, resolved};
use ending::{Ending, Outcome};
use rank::{Place, Rank};

/// Between two looks at ranks and signals.
const LOOK: Duration = Duration::from_millis(50);
/// Where one machine's ranks meet.
const HERE: &str = "127.0.0.1";

/// Starts the ranks and waits for their end.
///
/// # Errors
/// A command that has no ranks or means nothing; what the ranks ended with, as an [`Ended`] with their exit code.
pub fn launch(invocation: &Invocation) -> Result<()> {
    let config = resolved::<LaunchConfig>(invocation)?.config.launch;
    check(&invocation.launched)?;
    let heard = [SIGINT, SIGTERM, SIGUSR1, SIGHUP].into_iter();
    let heard = heard.filter(|signal| *signal != SIGHUP || !crate::signals::is_ignored(SIGHUP));
    let mut signals = Signals::new(heard).context("cannot listen to signals")?;
    for restarts in 0..=config.max_restarts {
        let outcome = run(&config, &invocation.launched, restarts, &mut signals)?;
        match outcome {
            Outcome::Done => return Ok(()),
            Outcome::Fault { why } if restarts < config.max_restarts => {
                base::say!(
                    "{why}\nall ranks start anew, {} of {} times",
                    restarts + 1,
                    config.max_restarts
                );
            }
            Outcome::Fault { why } => return Err(Ended { code: 1, why }.into()),
            Outcome::Other { code, why } => return Err(Ended { code, why }.into()),
        }
    }
    Ok(())
}

/// Refuses once what every rank would refuse.
fn check(launched: &[OsString]) -> Result<()> {
    let line = iter::once("vlm-r1".into()).chain(launched.iter().cloned());
    let inner = arguments::parse(line)?;
    match inner.command {
        Command::Grpo => resolved::<GrpoConfig>(&inner).map(drop),
        Command::Sft => resolved::<SftConfig>(&inner).map(drop),
        Command::Eval if !super::eval::is_comparison(&inner) => {
            resolved::<EvalConfig>(&inner).map(drop)
        }
        other => bail!(
            "`{}` has no ranks: expected `grpo`, `sft` or `eval` of a model\nhint: leave `launch` out",
            other.name()
        ),
    }
}

fn run(
    config: &LaunchSection,
    launched: &[OsString],
    restarts: usize,
    signals: &mut Signals,
) -> Result<Outcome> {
    let addr = config.master_addr.as_deref().unwrap_or(HERE);
    let port = config.master_port.map_or_else(free_port, |port| Ok(port as u16))?;
    let mut ranks = Vec::new();
    let mut ending = Ending::default();
    for local_rank in 0..config.nproc_per_node {
        let place = Place {
            rank: config.node_rank * config.nproc_per_node + local_rank,
            size: config.nnodes * config.nproc_per_node,
            local_rank,
            local_size: config.nproc_per_node,
            group: config.node_rank,
            addr,
            port,
            restarts,
        };
        match Rank::start(&place, launched) {
            Ok(rank) => ranks.push(rank),
            Err(error) => {
                ranks.iter_mut().for_each(Rank::kill);
                return Err(error);
            }
        }
    }
    loop {
        for signal in signals.pending() {
            let name = signal_name(signal).unwrap_or("a signal");
            base::say!("{name}: passed on to {} ranks", ranks.len());
            ranks.iter_mut().for_each(|rank| rank.signal(signal));
            ending.asked();
        }
        if ranks.iter_mut().map(Rank::has_ended).fold(true, |all, ended| all & ended) {
            break;
        }
        ending.look(&mut ranks);
        std::thread::sleep(LOOK);
    }
    ending.look(&mut ranks);
    ranks.iter_mut().for_each(Rank::finish_output);
    Ok(ending.outcome())
}

/// A port that nobody listens at, a moment ago.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((HERE, 0)).context("no free port on this machine")?;
    Ok(listener.local_addr()?.port())
}
