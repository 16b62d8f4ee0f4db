//! Which rank this process is, from the variables of who started it: `torchrun`, `vlm-r1 launch`, Kubernetes' PyTorchJob, or `srun`.

use std::env;

/// Where a process stands among the ranks of its run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// This rank, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub size: usize,
    /// This rank among those of its host, from 0: the index of its card.
    pub local_rank: usize,
    /// How many ranks its host has.
    pub local_size: usize,
    /// Where ranks meet; empty for one rank.
    pub master_addr: String,
    /// Its port; 0 for one rank.
    pub master_port: u16,
    /// How often the launcher has started these ranks again.
    pub restarts: usize,
    /// Whether rank 0 serves the store where ranks meet. Not under `torchrun`, whose agent does.
    pub hosts_store: bool,
}

/// A variable that cannot be obeyed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// One that does not fit.
    #[error("{name}=`{got}`: expected {expected}\nhint: {hint}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value.
        got: String,
        /// What it may be.
        expected: String,
        /// What to do.
        hint: &'static str,
    },
    /// One that is not there.
    #[error("{name} is not set, but {because}\nhint: {hint}")]
    Missing {
        /// Its name.
        name: &'static str,
        /// Why it is needed.
        because: String,
        /// What to do.
        hint: &'static str,
    },
}

const START: &str = "start the ranks with `vlm-r1 launch` or `torchrun`, which set all of RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT";
const MEET: &str =
    "MASTER_ADDR is the host of rank 0 and MASTER_PORT a free port of it, the same for all ranks";

/// Reads a variable.
type Get<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Place {
    /// One rank, started by hand.
    pub fn alone() -> Self {
        Self {
            rank: 0,
            size: 1,
            local_rank: 0,
            local_size: 1,
            master_addr: String::new(),
            master_port: 0,
            restarts: 0,
            hosts_store: true,
        }
    }

    /// As the environment says; without RANK and WORLD_SIZE one rank.
    ///
    /// # Errors
    /// Variables that are missing or do not fit together.
    pub fn from_env() -> Result<Self, PlaceError> {
        Self::read(&|name| env::var(name).ok())
    }

    /// As [`Self::from_env`], of any variables. Empty ones are as if they were not set.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn read(get: &dyn Fn(&str) -> Option<String>) -> Result<Self, PlaceError> {
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let get: Get<'_> = &get;
        let names = if is_slurm_step(get) { &SLURM } else { &TORCH };
        let (rank, size) = match (get(names.rank), get(names.size)) {
            (None, None) => return Ok(Self::alone()),
            (Some(rank), None) => {
                return Err(missing(names.size, format!("{} is {rank}", names.rank), START));
            }
            (None, Some(size)) if size != "1" => {
                return Err(missing(names.rank, format!("{} is {size}", names.size), START));
            }
            (rank, Some(_)) => {
                let size = number(get, names.size, 1..=1 << 20)?.unwrap_or(1);
                let rank = rank.map_or(Ok(None), |_| number(get, names.rank, 0..=size - 1))?;
                (rank.unwrap_or(0), size)
            }
        };
        let (local_rank, local_size) = names.local(get, rank, size)?;
        let (master_addr, master_port) = meeting_point(get, size)?;
        let agent = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| is_true(&value));
        let restarts = number(get, "TORCHELASTIC_RESTART_COUNT", 0..=usize::MAX)?.unwrap_or(0);
        let hosts_store = !agent;
        Ok(Self {
            rank,
            size,
            local_rank,
            local_size,
            master_addr,
            master_port,
            restarts,
            hosts_store,
        })
    }
}

/// The names that a launcher has for these.
struct Names {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
}

const TORCH: Names = Names { rank: "RANK", size: "WORLD_SIZE", local_rank: "LOCAL_RANK" };
const SLURM: Names =
    Names { rank: "SLURM_PROCID", size: "SLURM_NTASKS", local_rank: "SLURM_LOCALID" };

/// `srun` sets none of torch's variables. Its own count where the user said where ranks meet: a script of `sbatch` has SLURM_PROCID and
/// SLURM_NTASKS too, without being one of several tasks, and tasks may be programs that know nothing of each other.
fn is_slurm_step(get: Get<'_>) -> bool {
    get("RANK").is_none()
        && get("WORLD_SIZE").is_none()
        && get("MASTER_ADDR").is_some()
        && get("SLURM_PROCID").is_some()
        && get("SLURM_STEP_TASKS_PER_NODE").is_some()
}

impl Names {
    /// Rank and number of ranks on this host. PyTorchJob starts one rank a pod and sets neither.
    fn local(&self, get: Get<'_>, rank: usize, size: usize) -> Result<(usize, usize), PlaceError> {
        let local_size = match self.rank {
            "RANK" => number(get, "LOCAL_WORLD_SIZE", 1..=size)?,
            _ => Some(tasks_of_node(get, size)?),
        };
        let of_rank = match get(self.local_rank) {
            // Ranks of one process a host, as with `srun --ntasks-per-node=1`.
            None => local_size.map_or(0, |local_size| rank % local_size),
            Some(_) => {
                number(get, self.local_rank, 0..=local_size.unwrap_or(size) - 1)?.unwrap_or(0)
            }
        };
        Ok((of_rank, local_size.unwrap_or(of_rank + 1)))
    }
}

/// `4(x2),3`: hosts with 4, 4 and 3 tasks; SLURM_NODEID says which this one is.
fn tasks_of_node(get: Get<'_>, size: usize) -> Result<usize, PlaceError> {
    const NAME: &str = "SLURM_STEP_TASKS_PER_NODE";
    let got = get(NAME).unwrap_or_default();
    let wrong = |expected: String| PlaceError::Variable {
        name: NAME,
        got: got.clone(),
        expected,
        hint: "`srun` sets it; do not carry variables of one job step into another",
    };
    let mut tasks = Vec::new();
    for part in got.split(',') {
        let (count, times) =
            part.strip_suffix(')').and_then(|part| part.split_once("(x")).unwrap_or((part, "1"));
        let (Ok(count), Ok(times)) = (count.parse::<usize>(), times.parse::<usize>()) else {
            return Err(wrong("counts such as `4(x2),3`".to_owned()));
        };
        if count == 0 || times > size {
            return Err(wrong(format!("counts that add up to SLURM_NTASKS ({size})")));
        }
        tasks.extend(vec![count; times]);
    }
    if tasks.iter().sum::<usize>() != size {
        return Err(wrong(format!("counts that add up to SLURM_NTASKS ({size})")));
    }
    let node = number(get, "SLURM_NODEID", 0..=tasks.len() - 1)?.unwrap_or(0);
    Ok(tasks[node])
}

fn meeting_point(get: Get<'_>, size: usize) -> Result<(String, u16), PlaceError> {
    if size == 1 {
        return Ok((String::new(), 0));
    }
    let because = || format!("there are {size} ranks");
    let address = get("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR", because(), MEET))?;
    let port = number(get, "MASTER_PORT", 1..=usize::from(u16::MAX))?
        .ok_or_else(|| missing("MASTER_PORT", because(), MEET))?;
    Ok((address, port as u16))
}

fn number(
    get: Get<'_>,
    name: &'static str,
    range: std::ops::RangeInclusive<usize>,
) -> Result<Option<usize>, PlaceError> {
    let Some(got) = get(name) else { return Ok(None) };
    match got.trim().parse() {
        Ok(number) if range.contains(&number) => Ok(Some(number)),
        _ => {
            let expected = match *range.end() {
                usize::MAX => format!("a whole number from {}", range.start()),
                end => format!("a whole number from {} to {end}", range.start()),
            };
            let hint = if name.starts_with("MASTER") { MEET } else { START };
            Err(PlaceError::Variable { name, got, expected, hint })
        }
    }
}

fn missing(name: &'static str, because: String, hint: &'static str) -> PlaceError {
    PlaceError::Missing { name, because, hint }
}

/// As libtorch's Python reads it.
fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].contains(&&*value.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Place, PlaceError> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        Place::read(&|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    fn error(variables: &[(&str, &str)]) -> String {
        let error = read(variables).unwrap_err().to_string();
        assert!(error.contains("\nhint: "), "{error}");
        error.lines().next().unwrap().to_owned()
    }

    #[test]
    fn a_process_that_nobody_launched_is_alone() {
        assert_eq!(read(&[]), Ok(Place::alone()));
        assert_eq!(read(&[("RANK", ""), ("WORLD_SIZE", "")]), Ok(Place::alone()));
        // What a shell may still have.
        assert_eq!(read(&[("WORLD_SIZE", "1")]), Ok(Place::alone()));
        assert_eq!(read(&[("MASTER_ADDR", "a"), ("MASTER_PORT", "1")]), Ok(Place::alone()));
    }

    const TORCHRUN: [(&str, &str); 8] = [
        ("RANK", "5"),
        ("WORLD_SIZE", "8"),
        ("LOCAL_RANK", "1"),
        ("LOCAL_WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node-a"),
        ("MASTER_PORT", "29400"),
        ("TORCHELASTIC_RESTART_COUNT", "2"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ];

    #[test]
    fn of_torchrun() {
        let place = Place {
            rank: 5,
            size: 8,
            local_rank: 1,
            local_size: 4,
            master_addr: "node-a".to_owned(),
            master_port: 29400,
            restarts: 2,
            hosts_store: false,
        };
        assert_eq!(read(&TORCHRUN), Ok(place.clone()));
        // `vlm-r1 launch` has no agent.
        let launched = Place { restarts: 0, hosts_store: true, ..place };
        assert_eq!(read(&TORCHRUN[..6]), Ok(launched));
    }

    /// One rank a pod, and no variables of a host.
    #[test]
    fn of_a_pytorchjob() {
        let of = |name: &str| ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"].contains(&name);
        let variables: Vec<_> = TORCHRUN.into_iter().filter(|(name, _)| of(name)).collect();
        let place = read(&variables).unwrap();
        assert_eq!((place.rank, place.size, place.local_rank, place.local_size), (5, 8, 0, 1));
        assert!(place.hosts_store);
    }

    #[test]
    fn of_srun_where_the_user_says_where_ranks_meet() {
        let step = [
            ("SLURM_PROCID", "9"),
            ("SLURM_NTASKS", "11"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3"),
            ("MASTER_ADDR", "node-a"),
            ("MASTER_PORT", "29500"),
        ];
        let place = read(&step).unwrap();
        assert_eq!((place.rank, place.size, place.local_rank, place.local_size), (9, 11, 1, 3));
        let without = |name: &str| {
            let rest: Vec<_> = step.into_iter().filter(|(other, _)| *other != name).collect();
            read(&rest)
        };
        assert_eq!(without("MASTER_ADDR"), Ok(Place::alone()));
        // The script of a job is no task of it.
        assert_eq!(without("SLURM_STEP_TASKS_PER_NODE"), Ok(Place::alone()));
        // `srun torchrun ...`
        let both = [&TORCHRUN[..], &step[..5]].concat();
        assert_eq!(read(&both).unwrap().rank, 5);
        let other = |value: &'static str| {
            let mut step = step;
            step[4].1 = value;
            error(&step)
        };
        assert_eq!(
            other("4(x2),2"),
            "SLURM_STEP_TASKS_PER_NODE=`4(x2),2`: expected counts that add up to SLURM_NTASKS (11)"
        );
        assert_eq!(
            other("4x2"),
            "SLURM_STEP_TASKS_PER_NODE=`4x2`: expected counts such as `4(x2),3`"
        );
    }

    #[test]
    fn a_variable_that_does_not_fit_is_named() {
        let with = |name: &str, value: &'static str| {
            let set = TORCHRUN.map(|(known, old)| (known, if known == name { value } else { old }));
            error(&set)
        };
        assert_eq!(with("RANK", "8"), "RANK=`8`: expected a whole number from 0 to 7");
        assert_eq!(with("RANK", "-1"), "RANK=`-1`: expected a whole number from 0 to 7");
        assert_eq!(
            with("WORLD_SIZE", "eight"),
            "WORLD_SIZE=`eight`: expected a whole number from 1 to 1048576"
        );
        assert_eq!(with("LOCAL_RANK", "4"), "LOCAL_RANK=`4`: expected a whole number from 0 to 3");
        assert_eq!(
            with("LOCAL_WORLD_SIZE", "9"),
            "LOCAL_WORLD_SIZE=`9`: expected a whole number from 1 to 8"
        );
        assert_eq!(
            with("MASTER_PORT", "70000"),
            "MASTER_PORT=`70000`: expected a whole number from 1 to 65535"
        );
        assert_eq!(
            with("TORCHELASTIC_RESTART_COUNT", "x"),
            "TORCHELASTIC_RESTART_COUNT=`x`: expected a whole number from 0"
        );
        assert_eq!(with("RANK", ""), "RANK is not set, but WORLD_SIZE is 8");
        assert_eq!(with("WORLD_SIZE", ""), "WORLD_SIZE is not set, but RANK is 5");
        assert_eq!(with("MASTER_ADDR", ""), "MASTER_ADDR is not set, but there are 8 ranks");
        assert_eq!(with("MASTER_PORT", ""), "MASTER_PORT is not set, but there are 8 ranks");
    }
}
