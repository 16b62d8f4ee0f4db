//! What one rank does in these tests. It is a test that the others start by name, in processes of its own.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use base::world::World;
use ranks::{JoinError, JoinOptions, Place, Ranks, join, leave};
use tch::{Device, Kind, Tensor};
use torch::ranks::Transport;

/// The name by which it is started.
pub const NAME: &str = "rank::a_rank_of_other_tests";
/// Which of the tasks below.
pub const TASK: &str = "VLM_R1_TEST_TASK";
/// The rank that does something else than the others.
pub const ODD: &str = "VLM_R1_TEST_ODD";
/// `--ddp_timeout`, in seconds.
pub const LIMIT: &str = "VLM_R1_TEST_LIMIT";
/// Where ranks tell the test that they are ready.
pub const FOLDER: &str = "VLM_R1_TEST_FOLDER";

/// Of a rank that ended because another one did.
pub const OTHER: i32 = 3;
/// Of a rank that failed.
pub const OWN: i32 = 1;

#[test]
#[ignore = "a rank of the other tests, which start it"]
fn a_rank_of_other_tests() {
    let Ok(task) = env::var(TASK) else { return };
    let ranks = match meet() {
        Ok(ranks) => ranks,
        Err(error) => {
            println!("said: {error}");
            leave(OWN);
        }
    };
    let done = match &*task {
        "work" => work(&ranks),
        "facts" => facts(&ranks),
        "control" => wait(&ranks, &|| ranks.world.barrier("stop of step 12")),
        "tensors" => wait(&ranks, &|| {
            let tensor = Tensor::ones([4], (Kind::Float, Device::Cpu));
            let sum = ranks.tensors.all_reduce_sum(&tensor);
            sum.map_err(|error| ranks.world.explain(&error))
        }),
        task => panic!("no task {task}"),
    };
    let done = done.and_then(|()| Ok(ranks.world.finish()?));
    if let Err(error) = done {
        println!("said: {error}");
        ranks.world.fail(&error.to_string());
        leave(OTHER);
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap())
}

fn meet() -> Result<Ranks, JoinError> {
    let place = Place::from_env().unwrap();
    let limit = Duration::from_secs(number(LIMIT).unwrap());
    join(&place, &JoinOptions { limit, checks: true, transport: Transport::Gloo })
}

fn is_odd(ranks: &Ranks) -> bool {
    number(ODD) == Some(ranks.world.rank() as u64)
}

fn work(ranks: &Ranks) -> Result<(), JoinError> {
    let (rank, size) = (ranks.world.rank(), ranks.world.size());
    ranks.world.agree(&[("version", "1".to_owned()), ("threads", "1".to_owned())])?;
    let sums = ranks.world.sum("loss", &[rank as f64, 1.0])?;
    assert_eq!(sums, [(size * (size - 1) / 2) as f64, size as f64]);
    assert_eq!(ranks.world.any("stop", rank == 1)?, size > 1);
    let long = vec![rank as u8; 10_000 * rank];
    let all = ranks.world.gather("texts", &long)?;
    assert!(all.iter().enumerate().all(|(rank, bytes)| bytes == &vec![rank as u8; 10_000 * rank]));
    let tensor = Tensor::full([3], rank as f64, (Kind::Float, Device::Cpu));
    ranks.tensors.all_reduce_sum(&tensor)?;
    base::print_data!("said: {:?}", Vec::<f32>::try_from(&tensor).unwrap());
    Ok(())
}

fn facts(ranks: &Ranks) -> Result<(), JoinError> {
    let threads = if is_odd(ranks) { "8" } else { "4" };
    ranks.world.agree(&[("libtorch", "2.11.0".to_owned()), ("threads", threads.to_owned())])
}

/// All ranks but the odd one wait for it, which does as it is told by its folder: sleeps, or fails.
fn wait(
    ranks: &Ranks,
    waiting: &dyn Fn() -> Result<(), base::world::WorldError>,
) -> Result<(), JoinError> {
    ranks.world.at("step 12, rollout, train.jsonl:42");
    waiting()?;
    let folder = PathBuf::from(env::var(FOLDER).unwrap());
    fs::write(folder.join(format!("ready-{}", ranks.world.rank())), "").unwrap();
    if !is_odd(ranks) {
        ranks.world.at("step 12, update");
        waiting()?;
        return Ok(());
    }
    for _ in 0..600 {
        std::thread::sleep(Duration::from_millis(100));
        if folder.join("fail").exists() {
            ranks.world.fail("no memory for train.jsonl:42");
            leave(OWN);
        }
    }
    Ok(())
}
