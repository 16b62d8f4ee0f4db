//! Captured decoding steps by their shape.

use std::collections::HashMap;

use torch::{Graph, GraphPool, TorchError};

use crate::cache::StepShape;

/// Graphs kept at most: each takes some megabytes of the device.
const MAX_GRAPHS: usize = 64;

/// Runs work eagerly, captures it, and replays captures.
pub(crate) trait Capture: Sized {
    /// Captured work.
    type Graph;
    /// Runs the work eagerly on the stream of the captures.
    fn warm_up(&self, work: &mut dyn FnMut()) -> Result<(), TorchError>;
    /// Captures the work without running it.
    fn capture(&self, work: &mut dyn FnMut()) -> Result<Self::Graph, TorchError>;
    /// Runs captured work.
    fn replay(graph: &Self::Graph) -> Result<(), TorchError>;
    /// Another one, once the graphs of this one are dropped.
    fn renew(&self) -> Result<Self, TorchError>;
}

impl Capture for GraphPool {
    type Graph = Graph;

    fn warm_up(&self, work: &mut dyn FnMut()) -> Result<(), TorchError> {
        GraphPool::warm_up(self, work)
    }

    fn capture(&self, work: &mut dyn FnMut()) -> Result<Graph, TorchError> {
        GraphPool::capture(self, work)
    }

    fn replay(graph: &Graph) -> Result<(), TorchError> {
        graph.replay()
    }

    fn renew(&self) -> Result<Self, TorchError> {
        GraphPool::renew(self)
    }
}

/// CUDA graphs of steps. The first step of each shape warms up eagerly, the second captures a graph, later ones replay it. All graphs are
/// dropped when buffers moved, and when there are too many.
#[derive(Debug)]
pub(crate) struct CapturedGraphs<C: Capture> {
    capture: C,
    /// `None`: warmed up.
    graphs: HashMap<StepShape, Option<C::Graph>>,
    /// [`crate::cache::KvCache::relocations`] at the time of the captures.
    relocations: u64,
}

impl<C: Capture> CapturedGraphs<C> {
    /// Without graphs.
    pub fn new(capture: C) -> Self {
        CapturedGraphs { capture, graphs: HashMap::new(), relocations: 0 }
    }

    /// Runs the step `work`, eagerly or by its graph. Equal shapes at equal `relocations` must be equal work.
    pub fn run(
        &mut self,
        shape: StepShape,
        relocations: u64,
        work: &mut dyn FnMut(),
    ) -> Result<(), TorchError> {
        let captured = self.graphs.values().flatten().count();
        let moved = relocations != self.relocations;
        let is_full = captured == MAX_GRAPHS && matches!(self.graphs.get(&shape), Some(None));
        if (moved && captured > 0) || is_full {
            self.graphs.clear();
            self.capture = self.capture.renew()?;
        }
        self.relocations = relocations;
        match self.graphs.get(&shape) {
            None => {
                self.capture.warm_up(work)?;
                self.graphs.insert(shape, None);
            }
            Some(None) => {
                let graph = self.capture.capture(work)?;
                C::replay(&graph)?;
                self.graphs.insert(shape, Some(graph));
            }
            Some(Some(graph)) => C::replay(graph)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    /// Logs its calls; a graph is the number of its call.
    #[derive(Clone, Default)]
    struct Log {
        calls: Rc<RefCell<Vec<String>>>,
        pool: usize,
    }

    impl Log {
        fn push(&self, text: String) {
            self.calls.borrow_mut().push(text);
        }
    }

    impl Capture for Log {
        type Graph = (Log, usize);

        fn warm_up(&self, work: &mut dyn FnMut()) -> Result<(), TorchError> {
            work();
            self.push("eager".into());
            Ok(())
        }

        fn capture(&self, _work: &mut dyn FnMut()) -> Result<Self::Graph, TorchError> {
            let number = self.calls.borrow().len();
            self.push(format!("capture {number} in {}", self.pool));
            Ok((self.clone(), number))
        }

        fn replay((log, number): &Self::Graph) -> Result<(), TorchError> {
            log.push(format!("replay {number}"));
            Ok(())
        }

        fn renew(&self) -> Result<Self, TorchError> {
            Ok(Log { calls: Rc::clone(&self.calls), pool: self.pool + 1 })
        }
    }

    fn shape(completion_width: i64) -> StepShape {
        StepShape { slots: 4, prompts: 1, group_size: 4, prompt_width: 64, completion_width }
    }

    #[test]
    fn graphs_do_not_pile_up() {
        let log = Log::default();
        let mut graphs = CapturedGraphs::new(log.clone());
        for width in 0..10 * MAX_GRAPHS as i64 {
            for _ in 0..3 {
                graphs.run(shape(width), 1, &mut || ()).unwrap();
            }
            assert!(graphs.graphs.values().flatten().count() <= MAX_GRAPHS);
        }
        assert_eq!(graphs.capture.pool, 9);
    }

    #[test]
    fn a_shape_warms_up_then_is_captured_then_replayed_until_buffers_move() {
        let log = Log::default();
        let mut graphs = CapturedGraphs::new(log.clone());
        let mut eager_runs = 0;
        for (width, relocations) in [
            (64, 1), // warm-up
            (64, 2), // no graph is lost by the move: captured
            (64, 2),
            (96, 2), // another shape
            (64, 2),
            (96, 2),
            (64, 3), // buffers moved: warm-up again
            (64, 3),
            (96, 3),
        ] {
            graphs.run(shape(width), relocations, &mut || eager_runs += 1).unwrap();
        }
        let calls = log.calls.borrow().join(", ");
        assert_eq!(
            calls,
            "eager, capture 1 in 0, replay 1, replay 1, eager, replay 1, capture 6 in 0, replay 6, \
             eager, capture 9 in 1, replay 9, eager"
        );
        assert_eq!(eager_runs, 4);
    }
}
