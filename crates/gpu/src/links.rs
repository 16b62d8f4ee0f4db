//! NVIDIA's management library (`libnvidia-ml.so.1`): the driver's own version, and what lies between two cards.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::ptr::null_mut;

use crate::SharedLibrary;

const LIBRARY: &str = "libnvidia-ml.so.1";
/// Of `nvmlGpuP2PCapsIndex_t`.
const P2P_NVLINK: c_int = 2;

type Device = *mut c_void;
type Init = unsafe extern "C" fn() -> c_int;
type DriverVersion = unsafe extern "C" fn(*mut c_char, c_uint) -> c_int;
type ByBus = unsafe extern "C" fn(*const c_char, *mut Device) -> c_int;
type OfTwo = unsafe extern "C" fn(Device, Device, *mut c_int) -> c_int;
type P2p = unsafe extern "C" fn(Device, Device, c_int, *mut c_int) -> c_int;

/// The way from one card to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// NVIDIA's own.
    NvLink,
    /// PCIe, over one board, one switch, several switches, a host bridge, a NUMA node, or from one to another.
    Pcie(&'static str),
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NvLink => f.write_str("NVLink"),
            Self::Pcie(over) => write!(f, "PCIe {over}"),
        }
    }
}

/// The library, initialised.
#[derive(Debug)]
pub struct Nvml(SharedLibrary);

impl Nvml {
    /// `None` where it is not there or does not answer.
    pub fn open() -> Option<Self> {
        let library = SharedLibrary::open(LIBRARY).ok()?;
        // SAFETY: the types of this file are those of `nvml.h`, here and below.
        let init: Init = unsafe { library.function(c"nvmlInit_v2")? };
        // SAFETY: takes nothing.
        (unsafe { init() } == 0).then_some(Self(library))
    }

    /// The driver's version: `580.65.06`.
    pub fn driver_version(&self) -> Option<String> {
        // SAFETY: as above.
        let call: DriverVersion = unsafe { self.0.function(c"nvmlSystemGetDriverVersion")? };
        let mut buffer = [0u8; 96];
        // SAFETY: writes no more than it is told.
        let code = unsafe { call(buffer.as_mut_ptr().cast(), buffer.len() as c_uint) };
        let text = buffer.split(|byte| *byte == 0).next()?;
        (code == 0).then(|| String::from_utf8_lossy(text).into_owned())
    }

    /// What lies between the cards at two places (`0000:1b:00.0`); `None` where the library does not tell.
    pub fn between(&self, a: &str, b: &str) -> Option<Link> {
        let (a, b) = (self.card(a)?, self.card(b)?);
        // SAFETY: as above.
        let p2p: Option<P2p> = unsafe { self.0.function(c"nvmlDeviceGetP2PStatus") };
        let mut status = -1;
        // SAFETY: two cards of this library; writes a number, here and below.
        if p2p.is_some_and(|p2p| unsafe { p2p(a, b, P2P_NVLINK, &mut status) } == 0) && status == 0
        {
            return Some(Link::NvLink);
        }
        // SAFETY: as above.
        let common: OfTwo = unsafe { self.0.function(c"nvmlDeviceGetTopologyCommonAncestor")? };
        let mut level = -1;
        // SAFETY: as above.
        if unsafe { common(a, b, &mut level) } != 0 {
            return None;
        }
        // `nvmlGpuTopologyLevel_t`.
        let over = match level {
            0 => "on one board",
            10 => "through one switch",
            20 => "through several switches",
            30 => "through a host bridge",
            40 => "within a NUMA node",
            50 => "from one NUMA node to another",
            _ => return None,
        };
        Some(Link::Pcie(over))
    }

    fn card(&self, bus: &str) -> Option<Device> {
        let bus = CString::new(bus).ok()?;
        // SAFETY: as above.
        let call: ByBus = unsafe { self.0.function(c"nvmlDeviceGetHandleByPciBusId_v2")? };
        let mut device = null_mut();
        // SAFETY: a terminated text; writes one handle.
        (unsafe { call(bus.as_ptr(), &mut device) } == 0).then_some(device)
    }
}
