target_link_libraries(bilevel_core PRIVATE $<BUILD_INTERFACE:deps::json> $<BUILD_INTERFACE:deps::toml>)
