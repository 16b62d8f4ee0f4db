//! Operands: numbers, names, brackets, fractions, roots, functions, matrices.

use num_traits::Signed;

use crate::expr::{Binder, Constant, Expr, Function, Number};
use crate::lexer::Token;
use crate::parser::{Parser, set_of, value};
use crate::work::Work;

const FUNCTIONS: &[(&str, Function)] = &[
    ("exp", Function::Exp),
    ("sin", Function::Sin),
    ("cos", Function::Cos),
    ("tan", Function::Tan),
    ("cot", Function::Cot),
    ("sec", Function::Sec),
    ("csc", Function::Csc),
    ("arcsin", Function::Asin),
    ("arccos", Function::Acos),
    ("arctan", Function::Atan),
    ("arccot", Function::Acot),
    ("arcsec", Function::Asec),
    ("arccsc", Function::Acsc),
    ("sinh", Function::Sinh),
    ("cosh", Function::Cosh),
    ("tanh", Function::Tanh),
    ("arsinh", Function::Asinh),
    ("arcosh", Function::Acosh),
    ("artanh", Function::Atanh),
    ("arcsinh", Function::Asinh),
    ("arccosh", Function::Acosh),
    ("arctanh", Function::Atanh),
    ("floor", Function::Floor),
    ("ceil", Function::Ceil),
    ("det", Function::Det),
];

const SEVERAL: &[(&str, Function)] = &[
    ("gcd", Function::Gcd),
    ("lcm", Function::Lcm),
    ("max", Function::Max),
    ("min", Function::Min),
];

impl Parser<'_> {
    /// Whether an operand may follow here without a sign of multiplication.
    pub(crate) fn starts_operand(&self) -> bool {
        match self.peek() {
            Some(Token::Number(_) | Token::Percent(_) | Token::Name(_)) => true,
            Some(Token::Matrix { begin, .. }) => *begin,
            // A closing bar looks like an opening one: a product of bars needs a sign.
            Some(Token::Char('(' | '[' | '{' | '⦃' | '∞' | '⟦')) => true,
            Some(Token::Command(name)) => {
                let closing = ["rfloor", "rceil", "lrcorner", "urcorner", "choose"];
                let plain = ["frac", "dfrac", "tfrac", "cfrac", "binom", "dbinom", "tbinom"];
                let bracket = ["lfloor", "lceil", "llcorner", "ulcorner", "boxed", "phantom"];
                !closing.contains(name)
                    && (!self.no_function || plain.contains(name) || bracket.contains(name))
            }
            _ => false,
        }
    }

    pub(crate) fn operand(&mut self) -> Option<Expr> {
        self.deeper(Self::operand_here)
    }

    fn operand_here(&mut self) -> Option<Expr> {
        let token = self.peek()?.clone();
        match token {
            Token::Number(_) | Token::Percent(_) | Token::Name(_) => self.atom(),
            Token::Matrix { begin: true, determinant } => self.matrix(determinant),
            Token::Command(name) => {
                self.at += 1;
                self.command(name)
            }
            Token::Char(c) => {
                let was = std::mem::replace(&mut self.no_function, false);
                let inside = self.bracketed(c);
                self.no_function = was;
                inside
            }
            Token::Matrix { .. } | Token::Degree => None,
        }
    }

    /// One token as an operand: after `^`, `_`, `\frac`, `\sqrt`.
    pub(crate) fn single(&mut self) -> Option<Expr> {
        match self.peek()? {
            Token::Number(_) | Token::Percent(_) | Token::Name(_) => self.atom(),
            Token::Char('∞') => self.bracketed('∞'),
            Token::Command("frac" | "dfrac" | "tfrac" | "sqrt") => self.operand(),
            _ => None,
        }
    }

    /// The argument of `\frac` and `\sqrt`: a group or one token.
    fn argument(&mut self) -> Option<Expr> {
        if self.next_is('{') || self.next_is('(') {
            return value(self.operand()?);
        }
        self.single()
    }

    fn atom(&mut self) -> Option<Expr> {
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            Token::Number(text) => {
                // A base, `204_5`, is not compared.
                self.subscript()?;
                Some(Expr::Number(Number::parse(&text)?))
            }
            Token::Percent(text) => {
                let number = Expr::Number(Number::parse(&text)?);
                Some(Expr::Percent(Box::new(number)))
            }
            Token::Name(name) => self.name(&name),
            _ => None,
        }
    }

    fn name(&mut self, name: &str) -> Option<Expr> {
        let below = self.subscript()?;
        if below.is_empty() {
            match name {
                "pi" => return Some(Expr::Constant(Constant::Pi)),
                "e" => return Some(Expr::Constant(Constant::E)),
                "I" => return Some(Expr::Constant(Constant::I)),
                "gamma" | "Gamma" => return Some(Expr::Constant(Constant::EulerGamma)),
                _ => {}
            }
        }
        let symbol = format!("{name}{below}").to_lowercase();
        if name != "e"
            && name != "E"
            && let Some(arguments) = self.call_arguments()
        {
            return Some(Expr::Apply(symbol, arguments));
        }
        Some(Expr::Symbol(symbol))
    }

    /// `(2)` and `(x, y)` after a name are arguments; `(x + 1)` is a factor.
    fn call_arguments(&mut self) -> Option<Vec<Expr>> {
        let start = self.at;
        let close = match self.peek() {
            Some(Token::Char('(')) => ')',
            Some(Token::Char('[')) => ']',
            _ => return None,
        };
        self.at += 1;
        let arguments = self.deeper(|p| p.comma_list());
        if let Some(arguments) = arguments
            && self.eat(close)
            && (arguments.len() > 1 || is_atom(&arguments[0]))
        {
            return Some(arguments);
        }
        self.at = start;
        None
    }

    fn comma_list(&mut self) -> Option<Vec<Expr>> {
        let mut items = vec![value(self.additive()?)?];
        while self.eat(',') {
            items.push(value(self.additive()?)?);
        }
        Some(items)
    }

    /// The text of a subscript, empty where there is none.
    fn subscript(&mut self) -> Option<String> {
        if !self.eat('_') {
            return Some(String::new());
        }
        let start = self.at;
        if self.eat('{') {
            let mut open = 1;
            while open > 0 {
                match self.peek()? {
                    Token::Char('{') => open += 1,
                    Token::Char('}') => open -= 1,
                    _ => {}
                }
                self.at += 1;
            }
        } else {
            self.at += 1;
        }
        let text: String = self.tokens.get(start..self.at)?.iter().map(spelled).collect();
        let text = text.trim_start_matches('{').trim_end_matches('}');
        Some(format!("_{text}"))
    }

    /// Brackets of every kind, and signs that are operands themselves.
    fn bracketed(&mut self, open: char) -> Option<Expr> {
        self.at += 1;
        match open {
            '∞' => Some(Expr::Constant(Constant::Infinity)),
            '∅' => Some(Expr::Set(Vec::new())),
            'N' | 'Z' | 'Q' | 'R' | 'C' | 'P' => Some(Expr::NamedSet(open)),
            '|' => self.enclosed('|', Function::Abs),
            '⟦' => self.enclosed('⟧', Function::Abs),
            '{' => {
                if self.eat('}') {
                    return Some(Expr::Set(Vec::new()));
                }
                let groups = self.groups()?;
                if self.eat_command("choose") {
                    let below = value(self.additive()?)?;
                    self.expect('}')?;
                    let above = value(set_of(groups))?;
                    return Some(Expr::Call(Function::Binomial, vec![above, below]));
                }
                self.expect('}')?;
                Some(set_of(groups))
            }
            '⦃' => {
                if self.eat('⦄') {
                    return Some(Expr::Set(Vec::new()));
                }
                let groups = self.groups()?;
                self.expect('⦄')?;
                Some(Expr::Set(groups.into_iter().flatten().collect()))
            }
            '(' | '[' => {
                let groups = self.groups()?;
                let round = self.next_is(')');
                if !round && !self.next_is(']') {
                    return None;
                }
                self.at += 1;
                listed(groups, (open == '(', round), &self.work)
            }
            _ => None,
        }
    }

    fn enclosed(&mut self, close: char, function: Function) -> Option<Expr> {
        let inside = value(self.additive()?)?;
        self.expect(close)?;
        Some(Expr::Call(function, vec![inside]))
    }

    fn enclosed_by(&mut self, close: &str, function: Function) -> Option<Expr> {
        let inside = value(self.additive()?)?;
        self.eat_command(close).then_some(())?;
        Some(Expr::Call(function, vec![inside]))
    }

    fn command(&mut self, name: &'static str) -> Option<Expr> {
        match name {
            "frac" | "dfrac" | "tfrac" | "cfrac" => {
                let above = self.argument()?;
                Some(above.over(self.argument()?))
            }
            "binom" | "dbinom" | "tbinom" => {
                let above = self.argument()?;
                Some(Expr::Call(Function::Binomial, vec![above, self.argument()?]))
            }
            "sqrt" => self.root(),
            "boxed" | "phantom" => self.argument(),
            "lfloor" => self.enclosed_by("rfloor", Function::Floor),
            "llcorner" => self.enclosed_by("lrcorner", Function::Floor),
            "lceil" => self.enclosed_by("rceil", Function::Ceil),
            "ulcorner" => self.enclosed_by("urcorner", Function::Ceil),
            "log" | "ln" => self.logarithm(name),
            "sum" => self.bound(Binder::Sum),
            "prod" => self.bound(Binder::Product),
            "int" => self.integral(),
            "lim" => self.limit(),
            "operatorname" => {
                self.expect('{')?;
                let mut name = String::new();
                while !self.eat('}') {
                    name += &spelled(self.peek()?);
                    self.at += 1;
                }
                let known = FUNCTIONS.iter().chain(SEVERAL).find(|(known, _)| *known == name)?;
                self.command(known.0)
            }
            _ => {
                if let Some((_, function)) = SEVERAL.iter().find(|(known, _)| *known == name) {
                    self.expect('(')?;
                    let arguments = self.comma_list()?;
                    self.expect(')')?;
                    return Some(Expr::Call(*function, arguments));
                }
                let (_, function) = FUNCTIONS.iter().find(|(known, _)| *known == name)?;
                self.function(*function)
            }
        }
    }

    fn root(&mut self) -> Option<Expr> {
        let mut exponent = Expr::integer(1).over(Expr::integer(2));
        if self.eat('[') {
            let degree = value(self.additive()?)?;
            self.expect(']')?;
            exponent = Expr::integer(1).over(degree);
        }
        Some(Expr::Pow(Box::new((self.argument()?, exponent))))
    }

    fn function(&mut self, function: Function) -> Option<Expr> {
        let mut power = None;
        if self.eat('^') {
            power = Some(self.deeper(|p| p.exponent())?);
        }
        let argument = self.function_argument()?;
        let inverse = match function {
            Function::Sin => Some(Function::Asin),
            Function::Cos => Some(Function::Acos),
            Function::Tan => Some(Function::Atan),
            Function::Cot => Some(Function::Acot),
            Function::Sec => Some(Function::Asec),
            Function::Csc => Some(Function::Acsc),
            Function::Sinh => Some(Function::Asinh),
            Function::Cosh => Some(Function::Acosh),
            Function::Tanh => Some(Function::Atanh),
            _ => None,
        };
        Some(match (power, inverse) {
            (Some(p), Some(inverse)) if p == Expr::integer(-1) => {
                Expr::Call(inverse, vec![argument])
            }
            (Some(p), _) => Expr::Pow(Box::new((Expr::Call(function, vec![argument]), p))),
            (None, _) => Expr::Call(function, vec![argument]),
        })
    }

    /// `(...)`, or a product without further functions.
    fn function_argument(&mut self) -> Option<Expr> {
        if self.eat('(') {
            let argument = self.deeper(|p| value(p.additive()?))?;
            self.expect(')')?;
            return Some(argument);
        }
        let was = std::mem::replace(&mut self.no_function, true);
        let argument = self.deeper(|p| p.multiplicative());
        self.no_function = was;
        value(argument?)
    }

    fn logarithm(&mut self, name: &str) -> Option<Expr> {
        let mut base = if name == "ln" { Expr::Constant(Constant::E) } else { Expr::integer(10) };
        let mut power = None;
        loop {
            if self.eat('_') {
                base = self.deeper(|p| p.exponent())?;
            } else if self.eat('^') {
                power = Some(self.deeper(|p| p.exponent())?);
            } else {
                break;
            }
        }
        let call = Expr::Call(Function::Log, vec![self.function_argument()?, base]);
        Some(match power {
            Some(power) => Expr::Pow(Box::new((call, power))),
            None => call,
        })
    }
}

/// What a call may have as its only argument: a name, a number or a power of one.
fn is_atom(expr: &Expr) -> bool {
    match expr {
        Expr::Pow(pair) => is_atom(&pair.0),
        Expr::Number(n) => !n.value.is_negative(),
        Expr::Symbol(_) | Expr::Percent(_) => true,
        Expr::Constant(constant) => *constant != Constant::E,
        _ => false,
    }
}

/// The text of a token, for the name that a subscript makes.
fn spelled(token: &Token) -> String {
    match token {
        Token::Number(text) | Token::Percent(text) | Token::Name(text) => text.clone(),
        Token::Command(name) => (*name).to_owned(),
        Token::Char(c) => c.to_string(),
        Token::Degree => "°".to_owned(),
        Token::Matrix { .. } => "matrix".to_owned(),
    }
}

/// A bracketed list: a group, an interval or a tuple.
fn listed(groups: Vec<Vec<Expr>>, round: (bool, bool), work: &Work) -> Option<Expr> {
    let (left_round, right_round) = round;
    let single = groups.len() == 1;
    let mut items: Vec<Expr> = groups.into_iter().flatten().collect();
    if single && items.len() == 1 {
        return (left_round == right_round).then(|| items.pop()).flatten();
    }
    if single && items.len() == 2 && items.iter().all(Expr::is_value) {
        let (right, left) = (items.pop()?, items.pop()?);
        let order = crate::value::order(&left, &right, work);
        let empty = match (left_round, right_round) {
            (true, true) => order.is_some_and(std::cmp::Ordering::is_ge),
            (false, false) => order.is_some_and(std::cmp::Ordering::is_gt),
            _ => false,
        };
        if empty {
            return Some(Expr::Tuple(vec![left, right]));
        }
        if !left_round && !right_round && order.is_some_and(std::cmp::Ordering::is_eq) {
            return Some(Expr::Set(vec![left]));
        }
        let infinite = (crate::value::infinite(&left), super::value::infinite(&right));
        if infinite == (Some(false), Some(true)) && left_round && right_round {
            return Some(Expr::NamedSet('R'));
        }
        return Some(Expr::Interval {
            ends: Box::new((left, right)),
            open: (left_round, right_round),
        });
    }
    (left_round == right_round).then_some(Expr::Tuple(items))
}
