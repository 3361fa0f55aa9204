target_link_libraries(bilevel_tasks PRIVATE $<BUILD_INTERFACE:deps::json>)
