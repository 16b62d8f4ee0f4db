//! Recorded steps by their shape.

use std::collections::HashMap;

use torch::{Graph, GraphPool, TorchError};

use crate::cache::StepShape;

/// Recordings that are kept at most: each takes some megabytes of the device.
const MOST: usize = 64;

/// What does work at once, records it, and does what was recorded.
pub(crate) trait Recorder: Sized {
    /// Recorded work.
    type Recording;
    /// Does the work, where recordings are made.
    fn warm_up(&self, work: &mut dyn FnMut()) -> Result<(), TorchError>;
    /// Records the work without doing it.
    fn record(&self, work: &mut dyn FnMut()) -> Result<Self::Recording, TorchError>;
    /// Does recorded work.
    fn replay(recording: &Self::Recording) -> Result<(), TorchError>;
    /// Another one, for when the recordings of this one are gone.
    fn renew(&self) -> Result<Self, TorchError>;
}

impl Recorder for GraphPool {
    type Recording = Graph;

    fn warm_up(&self, work: &mut dyn FnMut()) -> Result<(), TorchError> {
        GraphPool::warm_up(self, work)
    }

    fn record(&self, work: &mut dyn FnMut()) -> Result<Graph, TorchError> {
        self.capture(work)
    }

    fn replay(recording: &Graph) -> Result<(), TorchError> {
        recording.replay()
    }

    fn renew(&self) -> Result<Self, TorchError> {
        GraphPool::renew(self)
    }
}

/// Recordings of steps. A shape is done plainly once, recorded when it comes again, and replayed from then on; all recordings go
/// when the buffers of the steps went elsewhere, and when they are too many.
#[derive(Debug)]
pub(crate) struct Recordings<R: Recorder> {
    recorder: R,
    /// `None`: seen once.
    known: HashMap<StepShape, Option<R::Recording>>,
    /// The buffers that the recordings know.
    relocations: u64,
}

impl<R: Recorder> Recordings<R> {
    /// None yet.
    pub fn new(recorder: R) -> Self {
        Recordings { recorder, known: HashMap::new(), relocations: 0 }
    }

    /// Does the step that is `work`, one way or another. Equal shapes at equal `relocations` are equal work.
    pub fn run(
        &mut self,
        shape: StepShape,
        relocations: u64,
        work: &mut dyn FnMut(),
    ) -> Result<(), TorchError> {
        let recorded = self.known.values().flatten().count();
        let moved = relocations != self.relocations;
        let is_full = recorded == MOST && matches!(self.known.get(&shape), Some(None));
        if (moved && recorded > 0) || is_full {
            self.known.clear();
            self.recorder = self.recorder.renew()?;
        }
        self.relocations = relocations;
        match self.known.get(&shape) {
            None => {
                self.recorder.warm_up(work)?;
                self.known.insert(shape, None);
            }
            Some(None) => {
                let recording = self.recorder.record(work)?;
                R::replay(&recording)?;
                self.known.insert(shape, Some(recording));
            }
            Some(Some(recording)) => R::replay(recording)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Writes down what it is asked for; a recording is its number.
    #[derive(Clone, Default)]
    struct Scribe {
        said: Rc<RefCell<Vec<String>>>,
        pool: usize,
    }

    impl Scribe {
        fn say(&self, text: String) {
            self.said.borrow_mut().push(text);
        }
    }

    impl Recorder for Scribe {
        type Recording = (Scribe, usize);

        fn warm_up(&self, work: &mut dyn FnMut()) -> Result<(), TorchError> {
            work();
            self.say("do".into());
            Ok(())
        }

        fn record(&self, _work: &mut dyn FnMut()) -> Result<Self::Recording, TorchError> {
            let number = self.said.borrow().len();
            self.say(format!("record {number} in {}", self.pool));
            Ok((self.clone(), number))
        }

        fn replay((scribe, number): &Self::Recording) -> Result<(), TorchError> {
            scribe.say(format!("replay {number}"));
            Ok(())
        }

        fn renew(&self) -> Result<Self, TorchError> {
            Ok(Scribe { said: Rc::clone(&self.said), pool: self.pool + 1 })
        }
    }

    fn shape(columns: i64) -> StepShape {
        StepShape { slots: 4, rows: 1, lanes: 4, prompt_width: 64, columns }
    }

    #[test]
    fn recordings_do_not_pile_up() {
        let scribe = Scribe::default();
        let mut recordings = Recordings::new(scribe.clone());
        for columns in 0..10 * MOST as i64 {
            for _ in 0..3 {
                recordings.run(shape(columns), 1, &mut || ()).unwrap();
            }
            assert!(recordings.known.values().flatten().count() <= MOST);
        }
        assert_eq!(recordings.recorder.pool, 9);
    }

    #[test]
    fn a_shape_is_done_then_recorded_then_replayed_until_buffers_move() {
        let scribe = Scribe::default();
        let mut recordings = Recordings::new(scribe.clone());
        let mut done = 0;
        for (columns, relocations) in [
            (64, 1), // done
            (64, 2), // nothing was recorded: what was learnt stays, and it is recorded
            (64, 2),
            (96, 2), // another shape
            (64, 2),
            (96, 2),
            (64, 3), // buffers moved: all anew
            (64, 3),
            (96, 3),
        ] {
            recordings.run(shape(columns), relocations, &mut || done += 1).unwrap();
        }
        let said = scribe.said.borrow().join(", ");
        assert_eq!(
            said,
            "do, record 1 in 0, replay 1, replay 1, do, replay 1, record 6 in 0, replay 6, \
             do, record 9 in 1, replay 9, do"
        );
        assert_eq!(done, 4);
    }
}
