//! Complex doubles, principal branches.

use super::expr::Function;

#[derive(Clone, Copy, Debug)]
pub(super) struct Complex {
    pub(super) re: f64,
    pub(super) im: f64,
}

const ONE: Complex = Complex { re: 1.0, im: 0.0 };
const I: Complex = Complex { re: 0.0, im: 1.0 };

impl Complex {
    pub(super) fn new(re: f64, im: f64) -> Self {
        Self { re, im }
    }

    pub(super) fn add(self, other: Self) -> Self {
        Self::new(self.re + other.re, self.im + other.im)
    }

    pub(super) fn sub(self, other: Self) -> Self {
        Self::new(self.re - other.re, self.im - other.im)
    }

    pub(super) fn mul(self, other: Self) -> Self {
        Self::new(
            self.re * other.re - self.im * other.im,
            self.re * other.im + self.im * other.re,
        )
    }

    pub(super) fn div(self, other: Self) -> Self {
        let scale = other.re * other.re + other.im * other.im;
        let quotient = self.mul(Self::new(other.re, -other.im));
        Self::new(quotient.re / scale, quotient.im / scale)
    }

    pub(super) fn abs(self) -> f64 {
        self.re.hypot(self.im)
    }

    fn scaled(self, by: f64) -> Self {
        Self::new(self.re * by, self.im * by)
    }
}

pub(super) fn exp(z: Complex) -> Complex {
    let size = z.re.exp();
    if z.im == 0.0 {
        return Complex::new(size, 0.0);
    }
    Complex::new(size * z.im.cos(), size * z.im.sin())
}

pub(super) fn ln(z: Complex) -> Complex {
    Complex::new(z.abs().ln(), z.im.atan2(z.re))
}

pub(super) fn sin(z: Complex) -> Complex {
    if z.im == 0.0 {
        return Complex::new(z.re.sin(), 0.0);
    }
    Complex::new(z.re.sin() * z.im.cosh(), z.re.cos() * z.im.sinh())
}

fn cos(z: Complex) -> Complex {
    if z.im == 0.0 {
        return Complex::new(z.re.cos(), 0.0);
    }
    Complex::new(z.re.cos() * z.im.cosh(), -z.re.sin() * z.im.sinh())
}

/// `base^exponent`; nothing for a pole.
pub(super) fn pow(base: Complex, exponent: Complex) -> Option<Complex> {
    if base.abs() == 0.0 {
        return (exponent.re > 0.0).then_some(Complex::new(0.0, 0.0));
    }
    if exponent.im == 0.0 && exponent.re.fract() == 0.0 && exponent.re.abs() <= 64.0 {
        let mut power = ONE;
        for _ in 0..exponent.re.abs() as u32 {
            power = power.mul(base);
        }
        return Some(if exponent.re < 0.0 {
            ONE.div(power)
        } else {
            power
        });
    }
    if base.im == 0.0 && base.re > 0.0 && exponent.im == 0.0 {
        return Some(Complex::new(base.re.powf(exponent.re), 0.0));
    }
    Some(exp(ln(base).mul(exponent)))
}

fn sqrt(z: Complex) -> Complex {
    pow(z, Complex::new(0.5, 0.0)).unwrap_or(z)
}

fn asin(z: Complex) -> Complex {
    let root = sqrt(ONE.sub(z.mul(z)));
    I.scaled(-1.0).mul(ln(I.mul(z).add(root)))
}

fn acos(z: Complex) -> Complex {
    Complex::new(std::f64::consts::FRAC_PI_2, 0.0).sub(asin(z))
}

fn atan(z: Complex) -> Complex {
    if z.im == 0.0 {
        return Complex::new(z.re.atan(), 0.0);
    }
    let above = ONE.sub(I.mul(z));
    let below = ONE.add(I.mul(z));
    I.scaled(0.5).mul(ln(above).sub(ln(below)))
}

fn sinh(z: Complex) -> Complex {
    exp(z).sub(exp(z.scaled(-1.0))).scaled(0.5)
}

fn cosh(z: Complex) -> Complex {
    exp(z).add(exp(z.scaled(-1.0))).scaled(0.5)
}

/// Functions of one number.
pub(super) fn call(function: Function, z: Complex) -> Option<Complex> {
    let inverse = || ONE.div(z);
    Some(match function {
        Function::Exp => exp(z),
        Function::Sin => sin(z),
        Function::Cos => cos(z),
        Function::Tan => sin(z).div(cos(z)),
        Function::Cot => cos(z).div(sin(z)),
        Function::Sec => ONE.div(cos(z)),
        Function::Csc => ONE.div(sin(z)),
        Function::Asin => asin(z),
        Function::Acos => acos(z),
        Function::Atan => atan(z),
        Function::Acot => atan(inverse()),
        Function::Asec => acos(inverse()),
        Function::Acsc => asin(inverse()),
        Function::Sinh => sinh(z),
        Function::Cosh => cosh(z),
        Function::Tanh => sinh(z).div(cosh(z)),
        Function::Asinh => ln(z.add(sqrt(z.mul(z).add(ONE)))),
        Function::Acosh => ln(z.add(sqrt(z.add(ONE)).mul(sqrt(z.sub(ONE))))),
        Function::Atanh => ln(ONE.add(z).div(ONE.sub(z))).scaled(0.5),
        Function::Abs => Complex::new(z.abs(), 0.0),
        Function::Floor if z.im == 0.0 => Complex::new(z.re.floor(), 0.0),
        Function::Ceil if z.im == 0.0 => Complex::new(z.re.ceil(), 0.0),
        _ => return None,
    })
}
