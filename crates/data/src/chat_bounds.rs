//! Limits on a chat template: steps, bytes built, and nesting. Model folders are not trusted.
//!
//! The engine counts steps (fuel). Text grows by output, by operators and by filters: output goes through a
//! formatter, filters and functions of the engine are wrapped. For operators the engine has no hook: their
//! instructions are exchanged for calls of filters (feature `unstable_machinery` of `minijinja`, whose version is
//! fixed).

use std::cell::Cell;
use std::fmt::{self, Write};

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, eval, make_string_output, parse, tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Tuple, Value, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, filters, functions};

/// Steps of one rendering. A long template takes some hundred a message.
const MAX_STEPS: u64 = 2_000_000;
/// Bytes of all that one rendering builds, what is thrown away included.
const MAX_BYTES: u64 = 64 << 20;
/// Bytes of the text that stands in the template and that one rendering writes.
const MAX_RAW_BYTES: u64 = 1 << 30;
/// Lists in lists.
const MAX_DEPTH: usize = 64;
/// What a value counts beside its text, bytes.
const VALUE_BYTES: u64 = 16;
/// `*` and `**`: of constants the engine works them out while it compiles, up to 100 MB each.
const MAX_PRODUCTS: usize = 8;
const TEMPLATE: &str = "chat_template";

thread_local! {
    /// Bytes that the rendering under way may still build.
    static LEFT: Cell<u64> = const { Cell::new(MAX_BYTES) };
}

/// Adds counting to an environment, for the template that it will render.
///
/// # Errors
/// A template that does not compile.
pub(crate) fn bound(
    environment: &mut Environment<'_>,
    source: &str,
    syntax: SyntaxConfig,
) -> Result<(), Error> {
    let (instructions, blocks) = compile(source, syntax)?;
    let longest = std::iter::once(&instructions).chain(blocks.values()).map(longest_raw).max();
    // Each step may write the longest piece of text that stands in the template.
    environment.set_fuel(Some(MAX_STEPS.min(MAX_RAW_BYTES / longest.unwrap_or(0).max(1))));
    environment.set_formatter(|out, _, value| match value.as_str() {
        Some(text) => charge(text.len() as u64).and_then(|()| Ok(out.write_str(text)?)),
        None => Ok(out.write_str(&text_of(value)?)?),
    });
    environment.add_filter("~", |left: Value, right: Value| -> Result<String, Error> {
        Ok(text_of(&left)? + &text_of(&right)?)
    });
    environment.add_filter("+", add);
    environment.add_filter("*", multiply);
    environment.add_filter("==", |left: Value, right: Value| {
        compare(&left, &right).map(|()| left == right)
    });
    environment.add_filter("!=", |left: Value, right: Value| {
        compare(&left, &right).map(|()| left != right)
    });
    environment.add_filter("in", |state: &mut State, left: Value, right: Value| {
        match left.as_object() {
            Some(_) => walk(&left, 0).and(walk(&right, 0))?,
            None => charge(size(&left) + size(&right))?,
        }
        operate(state, "left in right", left, right)
    });
    environment.add_filter("[]", |items: Rest<Value>| {
        items.iter().try_for_each(|item| walk(item, 1))?;
        Ok::<Value, Error>(Value::from(items.0))
    });
    environment.add_filter("()", |items: Rest<Value>| {
        items.iter().try_for_each(|item| walk(item, 1))?;
        Ok::<Value, Error>(Value::from(Tuple::from(items.0)))
    });
    environment.add_filter("{}", |pairs: Rest<Value>| {
        pairs.iter().try_for_each(|item| walk(item, 1))?;
        let pairs = pairs.chunks_exact(2);
        let pairs = pairs.map(|pair| (pair[0].clone(), pair[1].clone()));
        Ok::<Value, Error>(Value::from_pairs(pairs))
    });
    wrap(environment);
    environment.set_unknown_method_callback(|state, value, method, args| {
        let all: Vec<Value> = std::iter::once(value).chain(args).cloned().collect();
        expect(method, &all)?;
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    Ok(())
}

/// Renders a template within the bounds.
pub(crate) fn render(
    environment: &Environment<'_>,
    source: &str,
    syntax: SyntaxConfig,
    context: Value,
) -> Result<String, Error> {
    LEFT.set(MAX_BYTES);
    let (instructions, blocks) = compile(source, syntax)?;
    let mut text = String::new();
    let mut out = make_string_output(&mut text);
    let escape = AutoEscape::None;
    eval(environment, &instructions, context, &blocks, &mut out, escape)?;
    Ok(text)
}

fn longest_raw(instructions: &Instructions<'_>) -> u64 {
    let all = (0..).map_while(|index| instructions.get(index));
    let raw = all.map(|instruction| match instruction {
        Instruction::EmitRaw(text) => text.len() as u64,
        _ => 0,
    });
    raw.max().unwrap_or(0)
}

type Compiled<'s> = (Instructions<'s>, std::collections::BTreeMap<&'s str, Instructions<'s>>);

fn compile(source: &str, syntax: SyntaxConfig) -> Result<Compiled<'_>, Error> {
    let tokens = tokenize(source, false, syntax.clone());
    let products = tokens.filter(|token| matches!(token, Ok((Token::Mul | Token::Pow, _))));
    if products.count() > MAX_PRODUCTS {
        return Err(refuse("the template multiplies in more than 8 places"));
    }
    let tree = parse(source, TEMPLATE, syntax)?;
    let mut generator = CodeGenerator::new(TEMPLATE, source);
    generator.compile_stmt(&tree);
    let (mut instructions, mut blocks) = generator.finish();
    exchange(&mut instructions);
    blocks.values_mut().for_each(exchange);
    Ok((instructions, blocks))
}

/// Exchanges operators for filters, which find the same values on the stack.
fn exchange(instructions: &mut Instructions<'_>) {
    const NOT_KEPT: u8 = u8::MAX;
    let mut index = 0;
    while let Some(instruction) = instructions.get_mut(index) {
        let call = match instruction {
            Instruction::StringConcat => Some(("~", 2)),
            Instruction::Add => Some(("+", 2)),
            Instruction::Mul => Some(("*", 2)),
            Instruction::Eq => Some(("==", 2)),
            Instruction::Ne => Some(("!=", 2)),
            Instruction::In => Some(("in", 2)),
            Instruction::BuildList(Some(count)) => Some(("[]", *count)),
            Instruction::BuildTuple(Some(count)) => Some(("()", *count)),
            Instruction::BuildMap(count) => Some(("{}", 2 * *count)),
            _ => None,
        };
        if let Some((name, count)) = call
            && let Ok(count) = u16::try_from(count)
        {
            *instruction = Instruction::ApplyFilter(name, Some(count), NOT_KEPT);
        }
        index += 1;
    }
}

/// Counts bytes before they are built.
fn charge(bytes: u64) -> Result<(), Error> {
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(refuse("the template builds more than 64 MiB")),
    }
}

fn refuse(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Counts a value with all that is in it, which may be in it many times.
pub(crate) fn walk(value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(refuse("the template nests values more than 64 deep"));
    }
    charge(VALUE_BYTES + value.as_str().map_or(0, |text| text.len() as u64))?;
    match value.kind() {
        ValueKind::Seq => value.try_iter()?.try_for_each(|item| walk(&item, depth + 1)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            walk(&key, depth + 1)?;
            walk(&value.get_item(&key)?, depth + 1)
        }),
        _ => charge(VALUE_BYTES * value.len().unwrap_or(0) as u64),
    }
}

/// What a value itself counts, without what is in it.
fn size(value: &Value) -> u64 {
    let inner = value.as_str().map(str::len).or(value.len()).unwrap_or(0);
    VALUE_BYTES + inner as u64
}

/// Counts what a comparison looks at.
fn compare(left: &Value, right: &Value) -> Result<(), Error> {
    match (left.as_object(), right.as_object()) {
        (Some(_), Some(_)) => walk(left, 0).and(walk(right, 0)),
        _ => charge(size(left).min(size(right))),
    }
}

/// A value as text, counted.
fn text_of(value: &Value) -> Result<String, Error> {
    if value.as_object().is_some() {
        walk(value, 0)?;
    }
    let mut text = Counted(String::new());
    match write!(text, "{value}") {
        Ok(()) => Ok(text.0),
        Err(fmt::Error) => Err(refuse("the template builds more than 64 MiB")),
    }
}

/// Text whose bytes are counted.
struct Counted(String);

impl Write for Counted {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        charge(text.len() as u64).map_err(|_| fmt::Error)?;
        self.0.push_str(text);
        Ok(())
    }
}

fn add(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        charge((left.len() + right.len()) as u64)?;
        return Ok(Value::from([left, right].concat()));
    }
    // The engine's own sum of lists is a chain that grows deeper with each.
    if [&left, &right].iter().all(|value| value.kind() == ValueKind::Seq) {
        let items = left.try_iter()?.chain(right.try_iter()?);
        let counted = items.map(|item| walk(&item, 1).map(|()| item));
        return Ok(Value::from(counted.collect::<Result<Vec<Value>, Error>>()?));
    }
    operate(state, "left + right", left, right)
}

fn multiply(state: &mut State, left: Value, right: Value) -> Result<Value, Error> {
    let times = |value: &Value| u64::try_from(value.clone()).unwrap_or(0);
    let bytes = size(&left).saturating_mul(times(&right));
    charge(bytes.max(size(&right).saturating_mul(times(&left))))?;
    operate(state, "left * right", left, right)
}

/// An operator of the engine.
fn operate(
    state: &mut State,
    text: &'static str,
    left: Value,
    right: Value,
) -> Result<Value, Error> {
    let expression = state.env().compile_expression(text)?;
    let pair = Value::from_pairs([("left", left), ("right", right)]);
    expression.eval(pair).map_err(|error| {
        // Without the place, which would be that in the expression.
        Error::new(error.kind(), error.detail().unwrap_or_default().to_owned())
    })
}

/// Counts what a filter or method will take and make.
fn expect(name: &str, args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(|arg| walk(arg, 0))?;
    let text = |index: usize| args.get(index).and_then(Value::as_str).unwrap_or_default();
    let number = |index: usize| args.get(index).map_or(0, largest);
    let more = match name {
        "replace" => {
            let times = match text(1) {
                "" => text(0).len() + 1,
                old => text(0).matches(old).count(),
            };
            (times as u64).saturating_mul(text(2).len() as u64)
        }
        "join" => {
            let [list, between] = match args.first().map(Value::kind) {
                Some(ValueKind::String) => [1, 0],
                _ => [0, 1],
            };
            let count = args.get(list).and_then(Value::len).unwrap_or(0) as u64;
            count.saturating_mul(text(between).len() as u64)
        }
        "indent" => {
            let lines = text(0).lines().count() as u64;
            lines.saturating_mul(args.iter().skip(1).map(largest).max().unwrap_or(0))
        }
        "batch" | "slice" => args.iter().skip(1).map(largest).max().unwrap_or(0),
        // A width, in the text or beside it.
        "format" => numbers_in(text(0)).saturating_add(match text(0).contains('*') {
            true => (1..args.len()).map(number).max().unwrap_or(0),
            false => 0,
        }),
        _ => 0,
    };
    charge(more)
}

/// The largest whole number of a value, of named arguments too.
fn largest(value: &Value) -> u64 {
    match value.kind() {
        ValueKind::Map => {
            let values = value.try_iter().into_iter().flatten();
            let values = values.filter_map(|key| value.get_item(&key).ok());
            values.map(|value| u64::try_from(value).unwrap_or(0)).max().unwrap_or(0)
        }
        _ => u64::try_from(value.clone()).unwrap_or(0),
    }
}

/// The sum of the numbers that are written in a text.
fn numbers_in(text: &str) -> u64 {
    let runs = text.split(|c: char| !c.is_ascii_digit());
    let numbers = runs.filter(|run| !run.is_empty()).map(|run| run.parse().unwrap_or(u64::MAX));
    numbers.fold(0, u64::saturating_add)
}

/// Arguments as they stand, named ones among them.
type Given = Rest<ValueOrKwargs>;

/// Puts a count before each filter of the engine that takes or makes text or lists, and before functions that
/// put values into others.
fn wrap(environment: &mut Environment<'_>) {
    macro_rules! counted {
        ($($name:ident)*) => {$(
            environment.add_filter(concat!("engine.", stringify!($name)), filters::$name);
            environment.add_filter(stringify!($name), |state: &mut State, args: Given| {
                let args = args.into_values();
                expect(stringify!($name), &args)?;
                state.apply_filter(concat!("engine.", stringify!($name)), &args)
            });
        )*};
    }
    counted! {
        safe escape lower upper title capitalize replace dictsort items reverse trim join split lines sort list
        string batch slice sum indent select reject selectattr rejectattr map groupby unique chain zip pprint
        format min max
    }
    let namespace = Value::from_function(functions::namespace);
    environment.add_function("namespace", move |state: &mut State, args: Given| {
        let args = args.into_values();
        args.iter().try_for_each(|arg| walk(arg, 1))?;
        namespace.call(state, &args)
    });
}
