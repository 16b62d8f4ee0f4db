//! libtorch's errors out of the panics of `tch`: out of memory (OOM) as an error of its own, others as text.

use std::any::Any;
use std::cell::Cell;
use std::panic::{
    AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind, set_hook, take_hook,
};
use std::sync::Once;

use tch::{Device, TchError};

use crate::memory::empty_device_cache;

/// libtorch could not allocate: out of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OutOfMemory {
    /// The first line of libtorch's message.
    pub message: String,
}

impl OutOfMemory {
    /// The OOM that libtorch's error is, if it is one.
    pub fn of(error: &TchError) -> Option<Self> {
        Self::parse(&error.to_string())
    }

    /// CUDA's allocator says "out of memory", that of the CPU "can't allocate memory".
    fn parse(text: &str) -> Option<Self> {
        let line = text
            .lines()
            .find(|l| l.contains("out of memory") || l.contains("can't allocate memory"))?;
        // A panic's text quotes the error (`Torch("..")`, ours `Libtorch("..")`) and escapes its line ends.
        let line = line.split("\\n").next().unwrap_or(line);
        let start = line.rfind("orch(\"").map_or(0, |at| at + "orch(\"".len());
        Some(OutOfMemory { message: line[start..].trim().to_owned() })
    }

    fn of_panic(payload: &(dyn Any + Send)) -> Option<Self> {
        Self::parse(panic_text(payload)?)
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> Option<&str> {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
}

/// The first line of libtorch's message in a panic's text, which quotes the error (`Torch("..")`, ours `Libtorch("..")`) and escapes its line ends.
fn libtorch_message(text: &str) -> Option<&str> {
    let start = text.find("orch(\"")? + "orch(\"".len();
    text[start..].split("\\n").next().map(|line| line.trim_end_matches("\")").trim())
}

/// Which panics are caught, and therefore not printed.
#[derive(Clone, Copy, PartialEq)]
enum Catching {
    Nothing,
    OutOfMemory,
    Libtorch,
}

impl Catching {
    fn includes(self, payload: &(dyn Any + Send)) -> bool {
        match self {
            Catching::Nothing => false,
            Catching::OutOfMemory => OutOfMemory::of_panic(payload).is_some(),
            Catching::Libtorch => panic_text(payload).and_then(libtorch_message).is_some(),
        }
    }
}

thread_local! {
    static CATCHING: Cell<Catching> = const { Cell::new(Catching::Nothing) };
}

/// Runs `work` and turns a panic of `tch` into libtorch's message. Other panics go on, and so does OOM.
///
/// # Errors
/// The first line of libtorch's message.
pub(crate) fn catch_libtorch<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    catch(Catching::Libtorch, work).map_err(|payload| {
        let message = panic_text(payload.as_ref()).and_then(libtorch_message);
        match message {
            Some(message) if OutOfMemory::of_panic(payload.as_ref()).is_none() => {
                message.to_owned()
            }
            _ => resume_unwind(payload),
        }
    })
}

fn catch<R>(kind: Catching, work: impl FnOnce() -> R) -> std::thread::Result<R> {
    quiet_hook();
    let gradients = grad_is_enabled();
    let outer = CATCHING.replace(kind);
    let result = catch_unwind(AssertUnwindSafe(work));
    CATCHING.set(outer);
    if result.is_err() {
        // `tch::no_grad` does not end on unwinding.
        set_grad_enabled(gradients);
    }
    result
}

/// Runs `work` and turns a panic of libtorch's allocator into an error, after dropping what `work` held and emptying the GPU's caching
/// allocator. Other panics go on.
///
/// # Errors
/// [`OutOfMemory`].
pub fn catch_out_of_memory<R>(device: Device, work: impl FnOnce() -> R) -> Result<R, OutOfMemory> {
    catch(Catching::OutOfMemory, work).map_err(|payload| {
        match OutOfMemory::of_panic(payload.as_ref()) {
            Some(error) => {
                empty_device_cache(device);
                error
            }
            None => resume_unwind(payload),
        }
    })
}

fn grad_is_enabled() -> bool {
    let before = set_grad_enabled(false);
    set_grad_enabled(before);
    before
}

/// Returns the previous value.
fn set_grad_enabled(enabled: bool) -> bool {
    // SAFETY: takes and returns an integer, and sets a variable of this thread.
    unsafe { torch_sys::at_grad_set_enabled(enabled.into()) != 0 }
}

/// Panics that are caught here are not printed.
fn quiet_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = take_hook();
        set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !CATCHING.get().includes(info.payload()) {
                others(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor, no_grad};

    /// More than any machine has.
    fn allocate_too_much() -> Tensor {
        Tensor::zeros([1 << 55], (Kind::Float, Device::Cpu))
    }

    #[test]
    fn what_libtorch_cannot_allocate_is_an_error() {
        let caught = catch_out_of_memory(Device::Cpu, || no_grad(allocate_too_much));
        let message = caught.unwrap_err().message;
        assert!(message.contains("can't allocate memory"), "{message}");
        assert!(!message.contains("unwrap"), "{message}");
        // `no_grad` was left by unwinding.
        let leaf = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        assert!((&leaf * 2.0).requires_grad());
        assert_eq!(catch_out_of_memory(Device::Cpu, || 3), Ok(3));
        let error = Tensor::f_zeros([1 << 55], (Kind::Float, Device::Cpu)).unwrap_err();
        assert!(OutOfMemory::of(&error).is_some());
    }

    #[test]
    fn a_gpu_says_it_so() {
        let text = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried \
                    to allocate 2.00 GiB.\\nException raised from malloc at x.cpp:1\")";
        let message = OutOfMemory::parse(text).unwrap().message;
        assert_eq!(message, "CUDA out of memory. Tried to allocate 2.00 GiB.");
    }

    #[test]
    fn what_libtorch_refuses_is_its_message() {
        let wrong_shapes =
            || drop(no_grad(|| Tensor::zeros([2], (Kind::Float, Device::Cpu)).view([3])));
        let message = catch_libtorch(wrong_shapes).unwrap_err();
        assert_eq!(message, "shape '[3]' is invalid for input of size 2");
        let leaf = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        assert!((&leaf * 2.0).requires_grad());
        assert!(catch_unwind(|| catch_libtorch(|| panic!("of our own"))).is_err());
        assert!(catch_unwind(|| catch_libtorch(allocate_too_much)).is_err());
    }

    #[test]
    fn other_panics_go_on() {
        let wrong_shapes = || Tensor::zeros([2], (Kind::Float, Device::Cpu)).view([3]);
        let outer = catch_unwind(|| catch_out_of_memory(Device::Cpu, wrong_shapes).is_err());
        let text = outer.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("invalid for input of size 2"), "{text}");
    }
}
