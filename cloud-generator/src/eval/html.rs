use std::fmt::Write;

use super::report::Section;
use super::{Arm, Estimate, Report};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;padding:0 1rem;color:#1c2430}\
h1,h2{line-height:1.2}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .6rem;text-align:right;\
border-bottom:1px solid #d8dde4}td:first-child,th:first-child{text-align:left}pre{background:#f4f6f8;padding:1rem;\
overflow:auto}svg{width:100%;height:auto}.note{color:#5b6675}";
/// Of each arm, in their order.
const COLOURS: [&str; Arm::ALL.len()] =
    ["#8a94a3", "#4c78a8", "#72a5d8", "#d1495b", "#edae49", "#e6c98f", "#66a182", "#9cc7b1", "#9a6fb0", "#c38d9e"];

/// The report as one page without any other file.
pub fn html(report: &Report) -> String {
    let mut page =
        String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Edgeweld evaluation</title>");
    let _ = write!(page, "<style>{STYLE}</style><h1>Evaluation</h1>");
    for (section, title, main, second) in [
        (&report.ranked, "Tasks with choices", "acc", "acc_norm"),
        (&report.open, "Open tasks", "exact match", "ROUGE-L"),
    ] {
        if !section.tasks.is_empty() {
            write_section(&mut page, section, title, main, second);
        }
    }
    let settings = serde_json::to_string_pretty(&report.settings).unwrap_or_default();
    let _ = write!(page, "<h2>Settings</h2><pre>{}</pre></html>", escape(&settings));
    page
}

fn write_section(page: &mut String, section: &Section, title: &str, main: &str, second: &str) {
    let _ = write!(page, "<h2>{title}</h2>{}", bars(section));
    let _ = write!(
        page,
        "<p class=\"note\">Mean over tasks with 95% intervals (other items of the same tasks).</p><table><tr><th>arm<th>tasks\
         <th>items<th>{main}<th>{second}<th>balanced<th>HAR<th>prompt tokens<th>prompt ms<th>item ms<th>pack ms</tr>"
    );
    for arm in &section.arms {
        let _ = write!(
            page,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{:.1}<td>{:.0}<td>{:.0}<td>{:.0}<td>{:.0}</tr>",
            arm.arm.name(),
            arm.task_count,
            arm.main.n,
            percent(&arm.main),
            percent(&arm.second),
            arm.balanced.as_ref().map_or_else(|| "–".to_owned(), percent),
            100.0 * arm.harmonic,
            arm.prompt_tokens,
            arm.prompt_ms,
            arm.item_ms,
            arm.pack_ms
        );
    }
    page.push_str("</table><table><tr><th>difference<th>points<th>95%, other items<th>95%, other tasks<th>tasks</tr>");
    for difference in &section.differences {
        let _ = write!(
            page,
            "<tr><td>{} − {}<td>{:+.1}<td>±{:.1}<td>±{:.1}<td>{}</tr>",
            difference.arm.name(),
            difference.than.name(),
            100.0 * difference.items.mean,
            196.0 * difference.items.standard_error,
            196.0 * difference.tasks.standard_error,
            difference.task_count
        );
    }
    let _ = write!(page, "</table>{}<table><tr><th>task", dots(section));
    let arms: Vec<Arm> = section.arms.iter().map(|arm| arm.arm).collect();
    arms.iter().for_each(|arm| {
        let _ = write!(page, "<th>{}", arm.name());
    });
    page.push_str("</tr>");
    for task in &section.tasks {
        let _ = write!(page, "<tr><td>{}", escape(&task.task));
        for arm in &arms {
            match task.arms.iter().find(|(other, ..)| other == arm) {
                Some((_, main, ..)) => {
                    let _ = write!(page, "<td>{}", percent(main));
                }
                None => page.push_str("<td>–"),
            }
        }
        page.push_str("</tr>");
    }
    page.push_str("</table>");
}

// One bar per arm, with its interval.
fn bars(section: &Section) -> String {
    let (row, left, width) = (30.0, 150.0, 640.0);
    let height = row * section.arms.len() as f64 + 24.0;
    let mut svg = format!("<svg viewBox=\"0 0 820 {height}\" role=\"img\" aria-label=\"Mean by arm\">");
    for (index, arm) in section.arms.iter().enumerate() {
        let (y, x) = (row * index as f64, |share: f64| left + width * share.clamp(0.0, 1.0));
        let (low, high) = arm.main.interval();
        let middle = y + 13.0;
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"13\">{}</text><rect x=\"{left}\" y=\"{}\" \
             width=\"{:.1}\" height=\"18\" fill=\"{}\"/><path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#1c2430\" \
             stroke-width=\"2\"/><text x=\"{:.1}\" y=\"{}\" font-size=\"13\">{:.1}</text>",
            left - 8.0,
            y + 18.0,
            arm.arm.name(),
            y + 4.0,
            x(arm.main.mean) - left,
            colour(arm.arm),
            x(low),
            x(high),
            x(high) + 6.0,
            y + 18.0,
            100.0 * arm.main.mean
        );
    }
    svg + "</svg>"
}

// One line per task, one dot per arm.
fn dots(section: &Section) -> String {
    let (row, left, width) = (18.0, 330.0, 460.0);
    let height = row * section.tasks.len() as f64 + 8.0;
    let mut svg = format!("<svg viewBox=\"0 0 820 {height}\" role=\"img\" aria-label=\"Tasks\">");
    for (index, task) in section.tasks.iter().enumerate() {
        let y = row * index as f64 + 10.0;
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"11\">{}</text><path d=\"M{left} {y}h{width}\" \
             stroke=\"#d8dde4\"/>",
            left - 8.0,
            y + 4.0,
            escape(&task.task)
        );
        for (arm, main, ..) in &task.arms {
            let x = left + width * main.mean;
            let _ = write!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y}\" r=\"5\" fill=\"{}\"><title>{} {}</title></circle>",
                colour(*arm),
                arm.name(),
                percent(main)
            );
        }
    }
    svg + "</svg>"
}

fn colour(arm: Arm) -> &'static str {
    COLOURS[Arm::ALL.iter().position(|other| *other == arm).unwrap_or(0)]
}

fn percent(estimate: &Estimate) -> String {
    format!("{:.1} ± {:.1}", 100.0 * estimate.mean, 196.0 * estimate.standard_error)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
