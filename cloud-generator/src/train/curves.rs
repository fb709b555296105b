use std::fmt::Write;

use super::StepReport;

const COLOURS: [&str; 2] = ["#d1495b", "#66a182"];
/// Weight of a step in the smoothed curves.
const SMOOTHING: f64 = 0.1;

type Curve = (&'static str, fn(&super::LearnerReport) -> f64);

const CURVES: [Curve; 5] = [
    ("loss of the answers, nats", |report| report.loss),
    ("loss of the choices, nats", |report| report.choice_loss),
    ("right choices, share", |report| report.choice_accuracy),
    ("load balance, (σ/μ)²", |report| report.load_balance),
    ("norm of the gradients", |report| report.gradient_norm),
];

/// One page with a curve per quantity, generator and baseline together; smoothed, without any other file.
pub fn curves(steps: &[StepReport]) -> String {
    let mut page = String::from(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Edgeweld training</title><style>body{font:15px/1.5 \
         system-ui,sans-serif;margin:2rem auto;max-width:56rem}svg{width:100%;height:auto}</style><h1>Training</h1>",
    );
    let tokens: usize = steps.iter().map(|step| step.tokens).sum();
    let _ = write!(page, "<p>{} steps, {tokens} tokens. Red: generator; green: baseline.</p>", steps.len());
    for (title, value) in CURVES {
        let _ = write!(page, "<h2>{title}</h2>{}", chart(steps, value));
    }
    page + "</html>"
}

fn chart(steps: &[StepReport], value: fn(&super::LearnerReport) -> f64) -> String {
    let learner_count = steps.iter().map(|step| step.learners.len()).max().unwrap_or(0);
    let series: Vec<Vec<f64>> = (0..learner_count)
        .map(|learner| {
            let mut smooth = None;
            let values = steps.iter().filter_map(|step| step.learners.get(learner)).map(value);
            let next = |now: f64| {
                let mean = smooth.map_or(now, |before: f64| before + SMOOTHING * (now - before));
                smooth = Some(mean);
                mean
            };
            values.map(next).collect()
        })
        .collect();
    let largest = series.iter().flatten().copied().fold(1e-9, f64::max);
    let mut svg =
        String::from("<svg viewBox=\"0 0 800 220\"><path d=\"M50 10V190H790\" fill=\"none\" stroke=\"#8a94a3\"/>");
    let _ = write!(
        svg,
        "<text x=\"44\" y=\"16\" text-anchor=\"end\" font-size=\"12\">{largest:.2}</text><text x=\"44\" y=\"194\" \
         text-anchor=\"end\" font-size=\"12\">0</text><text x=\"790\" y=\"208\" text-anchor=\"end\" font-size=\"12\">step {}</text>",
        steps.last().map_or(0, |step| step.step)
    );
    for (values, colour) in series.iter().zip(COLOURS) {
        let x = |index: usize| 50.0 + 740.0 * index as f64 / values.len().max(2).saturating_sub(1) as f64;
        let points =
            values.iter().enumerate().map(|(i, value)| format!("{:.1},{:.1}", x(i), 190.0 - 180.0 * value / largest));
        let points = points.collect::<Vec<_>>().join(" ");
        let _ = write!(svg, "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
    }
    svg + "</svg>"
}
