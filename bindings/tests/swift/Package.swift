// swift-tools-version: 6.0
import PackageDescription

let package = Package(
    name: "Figures",
    platforms: [.macOS(.v13)],
    dependencies: [.package(name: "Edgeweld", path: "../../../ios")],
    targets: [.executableTarget(name: "Figures", dependencies: [.product(name: "Edgeweld", package: "Edgeweld")])]
)
