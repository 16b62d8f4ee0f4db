//! Fetches the wheels that hold libtorch through pip, checks them and unpacks the CPU part.
//!
//! pip does the downloading because it knows the user's index, proxy and certificates. It is told
//! to take the wheels of CPython 3.11 whatever Python runs it: their libraries do not depend on
//! it, and so one checksum serves all machines.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::VERSION;

/// A file of the package index, and what is needed of it.
struct Wheel {
    package: &'static str,
    file: &'static str,
    bytes: u64,
    sha256: &'static str,
    /// `path in the wheel=path in the view`; a path ending in `/` is a folder, `*` in a path stands for any characters.
    parts: &'static [&'static str],
}

const WHEELS: [Wheel; 3] = [
    Wheel {
        package: "torch==2.11.0",
        file: "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        bytes: 530_604_548,
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        parts: &[
            "torch/include/=include/",
            "torch/lib/libtorch_cpu.so=lib/libtorch_cpu.so",
            "torch/lib/libc10.so=lib/libc10.so",
            "torch/lib/libgomp.so.1=lib/libgomp.so.1",
        ],
    },
    Wheel {
        package: "nvidia-cuda-cupti==13.0.85",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        bytes: 10_715_597,
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        parts: &["nvidia/*/lib/libcupti.so.*=lib/"],
    },
    Wheel {
        package: "nvidia-cuda-runtime==13.0.96",
        file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        bytes: 2_243_632,
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        parts: &["nvidia/*/lib/libcudart.so.*=lib/"],
    },
];

/// What the parts of all wheels take once unpacked, for the progress bar only.
const UNPACKED_BYTES: u64 = 498_000_000;

const PIP: &[&str] = &[
    "-m",
    "pip",
    "download",
    "--quiet",
    "--no-input",
    "--no-deps",
    "--no-cache-dir",
    "--disable-pip-version-check",
    "--only-binary=:all:",
    "--retries",
    "3",
    "--implementation",
    "cp",
    "--python-version",
    "3.11",
    "--abi",
    "cp311",
    "--platform",
    "manylinux_2_28_x86_64",
    "--platform",
    "manylinux_2_25_x86_64",
    "--platform",
    "manylinux_2_17_x86_64",
];

/// Fills `staging` with `include/` and `lib/` from the package index.
pub fn into(staging: &Path) -> Result<()> {
    let wheels = staging.join("wheels");
    // On the same disk: `/tmp` is often too small for the wheel, and pip moves it from there.
    let scratch = wheels.join("tmp");
    fs::create_dir_all(&scratch)
        .with_context(|| format!("cannot create `{}`", scratch.display()))?;
    download(&wheels, &scratch)?;
    for wheel in &WHEELS {
        verify(&wheels.join(wheel.file), wheel.bytes, wheel.sha256)?;
    }
    unpack(&wheels, staging)?;
    fs::remove_dir_all(&wheels).with_context(|| format!("cannot remove `{}`", wheels.display()))
}

fn download(wheels: &Path, scratch: &Path) -> Result<()> {
    let log = wheels.join("pip.log");
    let log_file =
        File::create(&log).with_context(|| format!("cannot create `{}`", log.display()))?;
    let child = python()
        .args(PIP)
        .arg("--dest")
        .arg(wheels)
        .args(WHEELS.iter().map(|wheel| wheel.package))
        .env("TMPDIR", scratch)
        .stdout(Stdio::null())
        .stderr(log_file)
        .spawn()
        .context("cannot run `python3`")?;
    let total = WHEELS.iter().map(|wheel| wheel.bytes).sum();
    eprintln!("fetching libtorch {VERSION} ({})", HumanBytes(total));
    let done = watch(child, wheels, total)?;
    let said = fs::read_to_string(&log).unwrap_or_default();
    if !done {
        bail!(explain(&said));
    }
    Ok(())
}

fn unpack(wheels: &Path, staging: &Path) -> Result<()> {
    let target = staging.join("view");
    eprintln!("unpacking libtorch ({})", HumanBytes(UNPACKED_BYTES));
    for wheel in &WHEELS {
        let child = python()
            .args(["-c", include_str!("unpack.py")])
            .arg(wheels.join(wheel.file))
            .arg(&target)
            .args(wheel.parts)
            .spawn()
            .context("cannot run `python3`")?;
        if !watch(child, &target, UNPACKED_BYTES)? {
            bail!("cannot unpack `{}`", wheel.file);
        }
    }
    for name in ["include", "lib"] {
        fs::rename(target.join(name), staging.join(name))
            .with_context(|| format!("cannot place `{name}`"))?;
    }
    fs::remove_dir(&target).context("cannot remove a temporary folder")
}

fn python() -> Command {
    let mut command = Command::new("python3");
    command.stdin(Stdio::null());
    command
}

/// Waits for `child` while a bar shows how `folder` grows; whether it succeeded.
fn watch(mut child: Child, folder: &Path, total: u64) -> Result<bool> {
    let bar = ProgressBar::new(total);
    bar.set_style(ProgressStyle::with_template(
        "[{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
    )?);
    let status = loop {
        if let Some(status) = child.try_wait().context("lost `python3`")? {
            break status;
        }
        bar.set_position(folder_bytes(folder).min(total));
        std::thread::sleep(Duration::from_millis(100));
    };
    bar.finish_and_clear();
    Ok(status.success())
}

/// Bytes of all files below `folder`; files that vanish meanwhile count nothing.
fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(data) if data.is_dir() => folder_bytes(&entry.path()),
            Ok(data) => data.len(),
            Err(_) => 0,
        })
        .sum()
}

fn verify(path: &Path, bytes: u64, sha256: &str) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut file = File::open(path).with_context(|| format!("pip did not fetch `{name}`"))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut got_bytes = 0;
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("cannot read `{name}`"))?;
        if n == 0 {
            break;
        }
        got_bytes += n as u64;
        hasher.update(&buffer[..n]);
    }
    let got: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if got != sha256 {
        bail!(
            "`{name}`: sha256 {got} ({got_bytes} bytes), expected {sha256} ({bytes} bytes)\n\
             hint: run the command again; if it stays so, the index that pip uses serves another file"
        );
    }
    Ok(())
}

/// Turns what pip wrote into one cause and one way out, keeping pip's last words.
fn explain(said: &str) -> String {
    let any = |marks: &[&str]| marks.iter().any(|mark| said.contains(mark));
    let (cause, hint) = if any(&["No module named pip"]) {
        (
            "`python3` has no pip",
            "install it (`apt install python3-pip`, or `python3 -m ensurepip`)",
        )
    } else if any(&["No space left"]) {
        ("the disk is full", "2 GB are needed while unpacking, 0.6 GB afterwards")
    } else if any(&[
        "connection broken",
        "Connection",
        "ConnectTimeout",
        "ReadTimeout",
        "Read timed out",
        "ProxyError",
        "SSLError",
        "Could not fetch URL",
    ]) {
        (
            "no connection to the package index",
            "check the network and pip's settings (`pip config list`); on a machine without network set `LIBTORCH` to a folder with libtorch 2.11.0, or activate a Python that has torch 2.11.0",
        )
    } else if any(&["No matching distribution"]) {
        (
            "the package index that pip uses does not have these wheels",
            "`pip config list` shows the index; it must carry torch 2.11.0 for manylinux_2_28 x86_64, and pip must be 20.3 or newer",
        )
    } else {
        ("pip failed", "run the command again; pip's message is above")
    };
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(4)..].join("\n  ");
    format!("cannot fetch libtorch: {cause}\n  {tail}\nhint: {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_byte_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("x.whl");
        fs::write(&path, "abc").expect("write");
        // The example of FIPS 180-4.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        verify(&path, 3, abc).expect("right file");
        fs::write(&path, "abd").expect("write");
        let error = verify(&path, 3, abc).expect_err("wrong file").to_string();
        assert!(error.contains("`x.whl`: sha256 a52d159f"), "{error}");
        let error = verify(&folder.path().join("y.whl"), 3, abc).expect_err("no file");
        assert_eq!(error.to_string(), "pip did not fetch `y.whl`");
    }

    #[test]
    fn libraries_of_any_version_are_unpacked() {
        let folder = tempfile::tempdir().expect("folder");
        let wheel = folder.path().join("x.whl");
        let make = "import sys, zipfile\n\
                    with zipfile.ZipFile(sys.argv[1], 'w') as wheel:\n    \
                    for name in ['nvidia/cu17/lib/liba.so.17', 'nvidia/cu17/lib/libab.so.17', 'x/include/b.h']:\n        \
                    wheel.writestr(name, name)\n";
        let made = python().args(["-c", make]).arg(&wheel).status().expect("python3");
        assert!(made.success());
        let unpack = |rule: &str| {
            let mut child = python();
            child.args(["-c", include_str!("unpack.py")]).arg(&wheel).arg(folder.path()).arg(rule);
            child.stderr(Stdio::null()).status().expect("python3").success()
        };
        assert!(unpack("nvidia/*/lib/liba.so.*=lib/") && unpack("x/include/=include/"));
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        assert_eq!(read("lib/liba.so.17").expect("library"), "nvidia/cu17/lib/liba.so.17");
        assert_eq!(read("include/b.h").expect("header"), "x/include/b.h");
        assert!(read("lib/libab.so.17").is_err());
        assert!(!unpack("nvidia/*/lib/libc.so.*=lib/"));
    }

    #[test]
    fn each_failure_of_pip_has_its_own_cause() {
        let cases = [
            ("/usr/bin/python3: No module named pip", "has no pip"),
            (
                "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
                "disk is full",
            ),
            (
                "WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError'\n\
                 ERROR: No matching distribution found for torch==2.11.0",
                "no connection",
            ),
            (
                "ERROR: No matching distribution found for torch==2.11.0",
                "does not have these wheels",
            ),
            ("Traceback: KeyError", "pip failed"),
        ];
        for (said, cause) in cases {
            let text = explain(said);
            assert!(text.contains(cause), "{text}");
            assert!(text.contains("\nhint: "), "{text}");
        }
    }
}
