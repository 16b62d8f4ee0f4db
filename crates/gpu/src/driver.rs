//! NVIDIA's driver as `libcuda.so.1` tells of it: which CUDA it supports, and the cards that this process sees.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;
use std::ptr::null;

use crate::SharedLibrary;

/// The driver's library; it is part of the driver, not of CUDA.
const LIBRARY: &str = "libcuda.so.1";

/// What `cuInit` says where there is a driver and no card, or none that may be seen.
const NO_DEVICE: c_int = 100;
/// Of `CUdevice_attribute`.
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;

/// `major.minor`: of CUDA, or what a card can do (its compute capability).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Before the point.
    pub major: u32,
    /// Behind it.
    pub minor: u32,
}

/// A version of CUDA.
pub type CudaVersion = Version;

impl Version {
    /// `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One card that this process sees.
#[derive(Clone, Debug)]
pub struct CardFacts {
    /// As the driver calls it: `NVIDIA H200`.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Its compute capability.
    pub capability: Version,
    /// Its place, `0000:1b:00.0`.
    pub bus: String,
    /// Whether it reads the memory of each card that this process sees; of itself: yes.
    pub peers: Vec<bool>,
}

/// A driver that answers.
#[derive(Clone, Debug)]
pub struct Driver {
    /// The newest CUDA that it supports.
    pub cuda: CudaVersion,
    /// The cards in their order as `cuda:0`, `cuda:1` and so on; none where `CUDA_VISIBLE_DEVICES` hides all.
    pub cards: Vec<CardFacts>,
}

/// A driver that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The library is not there or does not load.
    #[error("{cause}")]
    NoLibrary {
        /// The loader's words.
        cause: String,
    },
    /// A library without a function that every driver has.
    #[error("`{LIBRARY}` has no function `{function}`")]
    Lacks {
        /// Its name.
        function: String,
    },
    /// A call that failed.
    #[error("`{function}` of `{LIBRARY}` says {code}: {text}")]
    Refused {
        /// The call.
        function: String,
        /// Its answer.
        code: i32,
        /// What the driver says that this means.
        text: String,
    },
}

type Int = unsafe extern "C" fn(*mut c_int) -> c_int;
type Init = unsafe extern "C" fn(c_uint) -> c_int;
type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Text = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
type ErrorText = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

impl Driver {
    /// Asks the driver.
    ///
    /// # Errors
    /// Where there is none, or it does not answer. No card is no error.
    pub fn read() -> Result<Self, DriverError> {
        let library =
            SharedLibrary::open(LIBRARY).map_err(|cause| DriverError::NoLibrary { cause })?;
        Calls { library }.driver()
    }
}

struct Calls {
    library: SharedLibrary,
}

impl Calls {
    fn driver(&self) -> Result<Driver, DriverError> {
        let cuda = self.cuda()?;
        // SAFETY: the types of this file are those of `cuda.h`, here and below.
        let init: Init = unsafe { self.function(c"cuInit")? };
        // SAFETY: takes a number that must be 0.
        match unsafe { init(0) } {
            NO_DEVICE => return Ok(Driver { cuda, cards: Vec::new() }),
            code => self.check(c"cuInit", code)?,
        }
        // SAFETY: as above.
        let count: Int = unsafe { self.function(c"cuDeviceGetCount")? };
        let mut num_cards = 0;
        // SAFETY: writes one number, here and below.
        self.check(c"cuDeviceGetCount", unsafe { count(&mut num_cards) })?;
        // SAFETY: as above.
        let get: Get = unsafe { self.function(c"cuDeviceGet")? };
        let mut devices = Vec::new();
        for index in 0..num_cards {
            let mut device = 0;
            // SAFETY: as above.
            self.check(c"cuDeviceGet", unsafe { get(&mut device, index) })?;
            devices.push(device);
        }
        let cards = devices.iter().map(|device| self.card(*device, &devices));
        Ok(Driver { cuda, cards: cards.collect::<Result<_, _>>()? })
    }

    /// The driver tells it before it is initialised.
    fn cuda(&self) -> Result<CudaVersion, DriverError> {
        // SAFETY: as above.
        let version: Int = unsafe { self.function(c"cuDriverGetVersion")? };
        let mut number = 0;
        // SAFETY: as above.
        self.check(c"cuDriverGetVersion", unsafe { version(&mut number) })?;
        let number = u32::try_from(number).unwrap_or_default();
        Ok(Version::new(number / 1000, number % 1000 / 10))
    }

    fn card(&self, device: c_int, all: &[c_int]) -> Result<CardFacts, DriverError> {
        // SAFETY: as above.
        let memory: Memory = unsafe { self.function(c"cuDeviceTotalMem_v2")? };
        let mut bytes = 0;
        // SAFETY: as above.
        self.check(c"cuDeviceTotalMem_v2", unsafe { memory(&mut bytes, device) })?;
        let capability = Version::new(
            self.attribute(device, CAPABILITY_MAJOR)?,
            self.attribute(device, CAPABILITY_MINOR)?,
        );
        // SAFETY: as above.
        let peer: Attribute = unsafe { self.function(c"cuDeviceCanAccessPeer")? };
        let reads = |other: c_int| {
            let mut can = 0;
            // SAFETY: as above.
            let code = unsafe { peer(&mut can, device, other) };
            other == device || (code == 0 && can != 0)
        };
        Ok(CardFacts {
            name: self.text(c"cuDeviceGetName", device)?,
            memory_bytes: bytes as u64,
            capability,
            bus: self.text(c"cuDeviceGetPCIBusId", device)?,
            peers: all.iter().map(|other| reads(*other)).collect(),
        })
    }

    fn attribute(&self, device: c_int, which: c_int) -> Result<u32, DriverError> {
        // SAFETY: as above.
        let attribute: Attribute = unsafe { self.function(c"cuDeviceGetAttribute")? };
        let mut value = 0;
        // SAFETY: as above.
        self.check(c"cuDeviceGetAttribute", unsafe { attribute(&mut value, which, device) })?;
        Ok(u32::try_from(value).unwrap_or_default())
    }

    fn text(&self, function: &CStr, device: c_int) -> Result<String, DriverError> {
        // SAFETY: both functions that are asked for have this type.
        let call: Text = unsafe { self.function(function)? };
        let mut buffer = [0 as c_char; 256];
        // SAFETY: writes no more than the size that it is told, less one for the end, which stays 0.
        self.check(function, unsafe { call(buffer.as_mut_ptr(), 255, device) })?;
        // SAFETY: zeros at the end.
        let text = unsafe { CStr::from_ptr(buffer.as_ptr()) };
        Ok(text.to_string_lossy().into_owned())
    }

    fn check(&self, function: &CStr, code: c_int) -> Result<(), DriverError> {
        if code == 0 {
            return Ok(());
        }
        let function = function.to_string_lossy().into_owned();
        Err(DriverError::Refused { function, code, text: self.meaning(code) })
    }

    fn meaning(&self, code: c_int) -> String {
        // SAFETY: as above.
        let call = unsafe { self.library.function::<ErrorText>(c"cuGetErrorString") };
        let mut text: *const c_char = null();
        // SAFETY: writes a pointer to a text that stays, or to nothing.
        let known = call.is_some_and(|call| unsafe { call(code, &mut text) } == 0);
        if !known || text.is_null() {
            return "an error that it has no words for".to_owned();
        }
        // SAFETY: a terminated text.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    /// # Safety
    /// As [`SharedLibrary::function`].
    unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, DriverError> {
        // SAFETY: the caller's promise.
        unsafe { self.library.function(name) }
            .ok_or_else(|| DriverError::Lacks { function: name.to_string_lossy().into_owned() })
    }
}
