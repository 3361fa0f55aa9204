target_link_libraries(bilevel_run PRIVATE $<BUILD_INTERFACE:deps::json>)
